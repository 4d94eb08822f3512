"""Training: ``train(TrainConfig(...))`` from Python, ``dsv3 train`` from the shell.

``data`` and ``corpus`` make batches of text, ``loss`` what is minimised, ``balance`` keeps the experts busy, ``optim``
takes the steps, ``checkpoint`` and ``log`` keep them, ``trainer`` is the loop.
"""

from typing import TYPE_CHECKING, Any

from dsv3.train.command import add_arguments, run

if TYPE_CHECKING:
    from dsv3.train.trainer import TrainResult, train

__all__ = ["TrainResult", "add_arguments", "run", "train"]


def __getattr__(name: str) -> Any:
    # The trainer brings torch along; a command line that only prints its help should not wait for it.
    if name in ("train", "TrainResult"):
        from dsv3.train import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
