"""One right answer to each exercise, by chapter. The stubs are these functions without their bodies."""
