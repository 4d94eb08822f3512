"""What tests on a CUDA device share."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def never_waiting() -> Iterator[None]:
    """Raise RuntimeError where an operation inside makes the host wait for the device."""

    def guard(mode: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls this guard a prototype, as a warning
            torch.cuda.set_sync_debug_mode(mode)

    guard("error")
    try:
        yield
    finally:
        guard("default")
