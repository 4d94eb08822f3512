"""The arguments of ``dsv3 train``: a preset file, and a flag for every key of TrainConfig that overrides it."""

import argparse
import dataclasses
import sys
from typing import Any, get_args

from dsv3.config import TrainConfig

_HELP = {
    "model": "file of ModelConfig keys",
    "data": "directory with train.npz and val.npz",
    "tokenizer": 'checkpoint whose tokenizer made the data ("tiny": the embedded one)',
    "out": "directory for the log, states to resume from, and the exported model",
    "device": "cuda, cpu; default: the GPU where there is one",
    "dtype": "what the model computes in; masters are FP32 in any case",
    "total_steps": "optimiser steps of the whole run",
    "max_seconds": "bound on the whole run; the learning rate's schedule ends with it",
    "stop_at_seconds": "bound on this process: save a state and stop, to be resumed",
    "compile": "what torch.compile fuses: nothing, the loss, or the blocks too",
    "export": "number format of the exported weights",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags. Their defaults are the preset's values, or TrainConfig's without a preset."""
    parser.add_argument("--config", metavar="FILE", help="preset: a JSON file of the keys below, with _ for -")
    parser.add_argument("--resume", action="store_true", help="go on from the newest state in --out, if there is one")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    for field in dataclasses.fields(TrainConfig):
        flag = "--" + field.name.replace("_", "-")
        kinds = [kind for kind in get_args(field.type) or (field.type,) if kind is not type(None)]
        options: dict[str, Any] = {"dest": field.name, "help": _HELP.get(field.name, "see TrainConfig")}
        if kinds == [bool]:
            options["action"] = argparse.BooleanOptionalAction
        elif isinstance(kinds[0], str):  # the values of a Literal
            options["choices"] = kinds
        else:
            options |= {"type": kinds[0], "metavar": kinds[0].__name__.upper()}
        parser.add_argument(flag, **options)


def config_from(args: argparse.Namespace) -> TrainConfig:
    """The preset with the given flags on top. Raises ConfigError for values that cannot be."""
    base = TrainConfig.from_json(args.config) if args.config else TrainConfig()
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(TrainConfig)}
    return dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})


def run(args: argparse.Namespace) -> None:
    """Train, and report on stderr how it ended."""
    from dsv3.parallel.group import Parallel
    from dsv3.train.trainer import train

    parallel = Parallel.from_torchrun()
    result = train(config_from(args), resume=args.resume, parallel=parallel, progress=not args.quiet)
    if parallel.dp.rank:
        return
    say = f"step {result.steps}, {result.tokens_per_second:,.0f} tokens/s; state {result.state}"
    if not result.finished:
        say += "; stopped by the clock, go on with --resume"
    else:
        bits = ", ".join(f"{language} {value:.3f}" for language, value in result.evaluation["bits_per_byte"].items())
        say += f"; bits per byte: {bits}; model in {result.export}"
    sys.stderr.write(say + "\n")
