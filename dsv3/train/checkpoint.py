"""States to resume a run from: one file a step, written beside and renamed, so that the newest always loads.

A state is a dict of tensors, numbers and strings only, so it is read without running pickled code. Parameters are not
in it: they are the optimiser's FP32 masters rounded. Resuming from a state gives the same bits as never having stopped.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

import torch

from dsv3.errors import CapacityError, CheckpointError

FORMAT = 2
_PATTERN = "step-*.pt"


def state_paths(directory: str | Path) -> list[Path]:
    """The states in a directory, oldest first (their names sort by step)."""
    return sorted(Path(directory).glob(_PATTERN))


def save_state(directory: str | Path, step: int, state: dict[str, Any], *, keep: int, write: bool = True) -> Path:
    """Write ``step-<step>.pt``, then remove all but the newest ``keep`` states. Returns its path.

    write: False on ranks that hold the same state as the one that writes. Raises CapacityError if it cannot be written;
    the states from before are then untouched.
    """
    directory = Path(directory)
    path = directory / f"step-{step:08d}.pt"
    if not write:
        return path
    beside = path.with_suffix(".tmp")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            torch.save({"format": FORMAT, "step": step} | state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        kept = state_paths(directory)
        last = f"the last good state is {kept[-1]}" if kept else "there is no earlier state"
        raise CapacityError(f"cannot write {path}: {error}; {last}. Free space or choose another directory") from None
    except BaseException:  # an interrupt must not leave the unfinished file either
        beside.unlink(missing_ok=True)
        raise
    killed_while_writing = directory.glob("step-*.tmp")
    for old in (*state_paths(directory)[:-keep], *killed_while_writing):
        old.unlink(missing_ok=True)
    return path


def load_state(path: str | Path) -> dict[str, Any]:
    """Read a state onto the CPU. Raises CheckpointError if it is damaged or of another format."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler stumble in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"cannot read the training state {path}: {reason}; remove the file to resume from the state before it"
        ) from None
    found = state.get("format") if isinstance(state, dict) else type(state).__name__
    if found != FORMAT:
        raise CheckpointError(f"{path} is no training state of format {FORMAT} (found {found!r}); start a new run")
    return state


def require_same(saved: dict[str, Any], current: dict[str, Any], *, free: frozenset[str], what: str) -> None:
    """Raise CheckpointError that lists the keys, other than ``free`` ones, on which two configurations differ."""
    keys = sorted((saved.keys() | current.keys()) - free)
    differing = [f"{k}: {saved.get(k)!r} then, {current.get(k)!r} now" for k in keys if saved.get(k) != current.get(k)]
    if differing:
        raise CheckpointError(
            f"cannot resume with another {what} ({'; '.join(differing)}): restore these values or start a new run"
        )
