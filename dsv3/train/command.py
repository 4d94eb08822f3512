"""The arguments of ``dsv3 train``: a preset file, and a flag for every key of TrainConfig that overrides it."""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from dsv3.config import TrainConfig
from dsv3.train.interrupt import StopRequest

_HELP = {
    "model": "file of ModelConfig keys: the model's shape",
    "data": "directory with train.npz and val.npz, as dsv3.train.corpus makes them",
    "tokenizer": 'checkpoint whose tokenizer made the data; it is checked and exported ("tiny": the embedded one)',
    "out": "directory for the log, the curves, states to resume from, and the exported model",
    "seed": "of the initial weights and of the order of the data",
    "init_std": "standard deviation of the initial weights",
    "seq_len": "tokens in a row of the batch",
    "batch_tokens": "tokens in an optimiser step, over all processes",
    "micro_batch_tokens": "tokens in one forward and backward pass of one process; less needs less memory",
    "total_steps": "optimiser steps of the whole run",
    "warmup_steps": "steps over which the learning rate rises from 0",
    "decay_fraction": "share of the run, at its end, over which the learning rate falls (a cosine)",
    "lr": "learning rate between warm-up and decay",
    "min_lr_ratio": "learning rate at the end, as a share of --lr",
    "beta1": "Adam: memory of the mean gradient, 0 to 1",
    "beta2": "Adam: memory of the mean squared gradient, 0 to 1",
    "eps": "Adam: added to the root of the mean square, so that nothing is divided by 0",
    "weight_decay": "how strongly matrices are pulled to 0, times the learning rate at each step",
    "clip": "largest norm of a step's gradient; a longer one is scaled down to it",
    "optimizer": "adamw: V3's, for everything; muon: for the hidden matrices, AdamW for the rest",
    "moments": "number format of the optimiser's moments; bf16 halves their memory",
    "mtp_weight": "weight of the multi-token prediction loss (lambda, V3 Eq. 25)",
    "bias_update": "step of the gates' balancing bias (gamma, V3 section 2.1.2); 0 switches it off",
    "bias_freeze_fraction": "share of the run, at its end, in which the bias rests",
    "balance_weight": "weight of the balance loss within each sequence (alpha, V3 Eq. 17)",
    "loss_chunk": "tokens whose logits exist at one time; less needs less memory",
    "compile": "what is fused: nothing, the loss, or the blocks too; graph: all, as one CUDA graph",
    "recompute": "compute norms and up-projections again in the backward pass, keep less (V3 section 3.2.3)",
    "device": "cuda, cuda:N or cpu; unset: the GPU where there is one",
    "dtype": "number format that the model computes in; the masters are FP32 in any case",
    "max_seconds": "bound on the whole run in seconds, resumed parts included; the learning rate has decayed by then",
    "stop_at_seconds": "bound on this process in seconds: save a state and stop, to be resumed",
    "log_every": "steps between two lines of the log",
    "eval_every": "steps between two evaluations on the validation data",
    "eval_documents": "validate on so many documents of each language; unset: on all",
    "patience": "end after so many evaluations without a better one and export the best; unset: train to the end",
    "save_every": "steps between two saved states",
    "keep": "how many states to keep; older ones are removed",
    "export": "number format of the exported weights",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags. Their defaults are the preset's values, or TrainConfig's without a preset."""
    parser.add_argument("--config", metavar="FILE", help="preset: a JSON file of the keys below, with _ for -")
    parser.add_argument("--resume", action="store_true", help="go on from the newest state in --out, if there is one")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    group = parser.add_argument_group(
        "what is trained, and how", "A flag overrides the preset, which overrides the defaults."
    )
    for field in dataclasses.fields(TrainConfig):
        flag = "--" + field.name.replace("_", "-")
        kinds = [kind for kind in get_args(field.type) or (field.type,) if kind is not type(None)]
        text = _HELP[field.name]
        if field.default is not None:
            default = f"{field.default:g}" if isinstance(field.default, float) else field.default
            text += f" (default: {default})"
        options: dict[str, Any] = {"dest": field.name, "default": None, "help": text.replace("%", "%%")}
        if kinds == [bool]:
            options["action"] = argparse.BooleanOptionalAction
        elif isinstance(kinds[0], str):  # the values of a Literal
            options["choices"] = kinds
        else:
            metavar = {int: "N", float: "X", str: "PATH" if field.name in ("model", "data", "out") else "NAME"}
            options |= {"type": kinds[0], "metavar": metavar[kinds[0]]}
        group.add_argument(flag, **options)


def config_from(args: argparse.Namespace) -> TrainConfig:
    """The preset with the given flags on top. Raises ConfigError for values that cannot be."""
    base = TrainConfig.from_json(args.config) if args.config else TrainConfig()
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(TrainConfig)}
    return dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})


def run(args: argparse.Namespace, *, on_evaluation: Callable[[Path], None] | None = None) -> int:
    """Train, and report on stderr how it ended. Returns the exit code: 0, or 128 + the signal that ended the run.

    on_evaluation: called with the run's directory whenever its tables have grown by an evaluation.
    """
    from dsv3.parallel.group import Parallel
    from dsv3.train.checkpoint import state_paths
    from dsv3.train.trainer import train

    parallel, stop, config = Parallel.from_torchrun(), StopRequest(), config_from(args)
    try:
        result = train(
            config,
            resume=args.resume,
            parallel=parallel,
            progress=not args.quiet,
            on_evaluation=on_evaluation,
            stop=stop,
        )
    except KeyboardInterrupt:
        states = state_paths(Path(config.out) / "states")
        kept = f"state {states[-1]} is kept, go on with --resume" if states else "no state was saved"
        sys.stderr.write(f"\nstopped at once; {kept}")
        if stop.signal is None:
            raise
        sys.stderr.write("\n")
        return stop.exit_code
    finally:
        stop.restore()
    say = f"step {result.steps}, {result.tokens_per_second:,.0f} tokens/s; state {result.state}"
    if not result.finished:
        why = "the clock" if stop.signal is None else stop.signal.name
        say += f" holds all of it; stopped by {why}, go on with --resume"
    else:
        bits = ", ".join(f"{language} {value:.3f}" for language, value in result.evaluation["bits_per_byte"].items())
        say += f"; bits per byte: {bits}; model in {result.export}"
    if not parallel.dp.rank:
        sys.stderr.write(say + "\n")
    return 0 if result.finished or stop.signal is None else stop.exit_code
