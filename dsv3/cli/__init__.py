"""The ``dsv3`` command. Text goes to stdout; progress, tables and messages go to stderr.

Each subcommand is a module here with ``add_arguments(parser)`` and ``run(args)``; only the one that was asked for is
imported, and it imports torch, the engine or matplotlib where it first needs them. A user's mistake ends in one line,
``dsv3: error: ...``, and an exit code: 2 for a request that cannot be served as typed, 1 for a failure, 130 for Ctrl-C.
A ``run`` may return an exit code of its own.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from dsv3.errors import Dsv3Error, RequestError

COMMANDS = {
    "generate": "continue a prompt, answer a file of prompts, or talk",
    "demo": "continue a story in English, Spanish and Chinese and show the expert load",
    "cost": "parameters, bytes, cache and FLOPs of a configuration",
    "bench": "measure kernels or models on this GPU, beside their peers",
    "train": "train a model from a configuration and text",
    "version": "versions of dsv3 and of what it runs on",
}

USAGE, FAILURE, INTERRUPTED, PIPE_CLOSED = 2, 1, 130, 141  # the last two: 128 + SIGINT, 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code. Only argparse raises SystemExit: for --help and usage errors."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_what_is_closed()
    _never_fail_on_a_character()
    args = _parser(arguments).parse_args(arguments)
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code or 0
    except BrokenPipeError:
        # The reader has left, as `head` does. The interpreter flushes stdout once more on its way out: give it a sink.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except (Dsv3Error, OSError) as error:
        if args.debug:
            traceback.print_exc()
        print(f"dsv3: error: {error}", file=sys.stderr)
        return USAGE if isinstance(error, RequestError) else FAILURE


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The whole command line, with the arguments of the one subcommand that ``arguments`` name."""
    parser = argparse.ArgumentParser(
        prog="dsv3", description="DeepSeek-V3 to read, run and learn from.", allow_abbrev=False
    )
    subparsers = parser.add_subparsers(title="commands", metavar="command", required=True)
    asked_for = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:] + ".", allow_abbrev=False
        )
        subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == asked_for:
            command = import_module(f"dsv3.cli.{name}")
            command.add_arguments(subparser)
            subparser.set_defaults(run=command.run)
    return parser


def _never_fail_on_a_character() -> None:
    """A terminal or locale that cannot show a character gets a replacement for it, not a crash in mid-answer.

    Bytes on stdin that are no text reach the tokenizer, which says so.
    """
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "replace"), (sys.stdin, "surrogateescape")):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=errors)


def _open_what_is_closed() -> None:
    """Python has None for a stream that the caller closed (``dsv3 ... >&-``): an empty one reads and writes alike."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (for the process's lifetime)
