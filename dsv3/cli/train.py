"""``dsv3 train``: the trainer's own arguments and its own run, with its curves drawn while it goes on."""

import argparse
import importlib.util
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from dsv3.train import add_arguments as add_training_arguments

    add_training_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from dsv3.train import run as train

    return train(args, on_evaluation=CurvePlot() if importlib.util.find_spec("matplotlib") else None)


class CurvePlot:
    """Draws ``curves.png`` into a run's directory from the tables there. A failure is said once and stops nothing."""

    def __init__(self) -> None:
        self.failed = False

    def __call__(self, out: Path) -> None:
        try:
            self.draw(out)
        except Exception as error:  # whatever it is, it is worth less than the run
            if not self.failed:
                print(f"dsv3: cannot draw {out / 'curves.png'}: {error}; training goes on", file=sys.stderr)
            self.failed = True

    @staticmethod
    def draw(out: Path) -> None:
        from dsv3 import viz
        from dsv3.train.log import read_columns

        log, evaluations = (read_columns(out / "log.jsonl", kind) for kind in ("train", "eval"))
        if log:  # there may be an evaluation before the first line of losses
            description = viz.describe_training(log, evaluations)
            viz.save(viz.draw_training(log, evaluations), out / "curves.png", description=description)
