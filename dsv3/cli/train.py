"""``dsv3 train``: the trainer's own arguments and its own run."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from dsv3.train import add_arguments as add_training_arguments

    add_training_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from dsv3.train import run as train

    train(args)
