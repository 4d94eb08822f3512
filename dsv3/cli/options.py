"""Arguments that several subcommands share, and the objects made from them. Imports torch only to load a model."""

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dsv3.cli.configs import load_config
from dsv3.engine import SamplingParams
from dsv3.errors import Dsv3Error, RequestError

if TYPE_CHECKING:
    from dsv3.engine import LLM

PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def positive_int(text: str) -> int:
    """An argparse type: from 1 to what a 64-bit index holds."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    if value > sys.maxsize:
        raise argparse.ArgumentTypeError(f"a number of {len(text)} digits is too large")
    return value


def plot_path(text: str) -> Path:
    """An argparse type: a file to draw into, refused before any work is done for it."""
    path = Path(text)
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} must end in one of {', '.join(PLOT_SUFFIXES)}")
    return path


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--ckpt-path",
        default="tiny",
        metavar="DIR",
        help="checkpoint to load (default: the embedded model, %(default)r)",
    )
    group.add_argument("--config", metavar="FILE", help="model configuration instead of the checkpoint's own")
    group.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    group.add_argument("--dtype", choices=("fp32", "bf16", "fp8"), help="type of the weights (default: by device)")
    group.add_argument("--max-seq-len", type=positive_int, metavar="N", help="longest prompt plus answer, in tokens")
    group.add_argument(
        "--speculative",
        action=argparse.BooleanOptionalAction,
        help="draft tokens with the MTP module; changes speed, never a token (default: where the model has one)",
    )


def load_llm(args: argparse.Namespace, *, max_batch_size: int) -> "LLM":
    """The model that ``add_model_arguments`` describe. This is where torch is imported."""
    from dsv3 import weights
    from dsv3.engine import LLM

    config = load_config(args.config) if args.config else weights.read_config(weights.resolve(args.ckpt_path))
    if args.max_seq_len is not None and not 2 <= args.max_seq_len <= config.max_context:
        raise RequestError(
            f"--max-seq-len is {args.max_seq_len}; this model serves from 2 to {config.max_context} tokens"
        )
    speculative = bool(config.n_mtp_layers) if args.speculative is None else args.speculative
    return LLM(
        args.ckpt_path,
        config=config,
        device=args.device,
        dtype=args.dtype,
        max_seq_len=args.max_seq_len,
        max_batch_size=max_batch_size,
        speculative=int(speculative),
    )


def add_sampling_arguments(parser: argparse.ArgumentParser, *, max_new_tokens: int, temperature: float) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-new-tokens", type=int, default=max_new_tokens, metavar="N", help="(default: %(default)s)")
    group.add_argument("--temperature", type=float, default=temperature, help="0 is greedy (default: %(default)s)")
    group.add_argument("--top-k", type=int, default=0, metavar="K", help="keep the K likeliest tokens; 0 keeps all")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="keep the likeliest tokens that hold P")
    group.add_argument("--min-p", type=float, default=0.0, metavar="P", help="drop tokens below P times the likeliest")
    group.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1 discourages repeats")
    group.add_argument("--seed", type=int, help="makes sampling repeatable")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; may be repeated")


def sampling_params(args: argparse.Namespace, **more: object) -> SamplingParams:
    """Raises RequestError for values out of range."""
    return SamplingParams(
        max_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
        stop=tuple(args.stop),
        **more,  # type: ignore[arg-type]
    )


def check_plot(path: Path) -> None:
    """Refuse a figure that could not be drawn or saved, before the model runs for it. Does not import matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise Dsv3Error("drawing a figure needs matplotlib, which is not installed: pip install 'dsv3[viz]'")
    if not path.parent.is_dir():
        raise RequestError(f"cannot save {path}: there is no directory {path.parent}; create it first")
    if path.is_dir():
        raise RequestError(f"cannot save {path}: it is a directory; give the name of a file")
    if not os.access(path.parent, os.W_OK):
        raise RequestError(f"cannot save {path}: {path.parent} is not writable; choose another place")
