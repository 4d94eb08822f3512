"""``dsv3 demo``: a story in three languages by the embedded model, and its expert load. ``make demo`` runs it."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dsv3.cli import report
from dsv3.cli.generate import stream_text
from dsv3.cli.options import (
    add_model_arguments,
    add_sampling_arguments,
    check_plot,
    load_llm,
    plot_path,
    sampling_params,
)
from dsv3.errors import Dsv3Error, RequestError

if TYPE_CHECKING:
    from dsv3.expert_load import LayerLoad

BEGINNINGS = {
    "English": "Once upon a time there was a",
    "Spanish": "Había una vez un",
    "Chinese": "话说",  # as the old novels begin, which are most of its Chinese
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_sampling_arguments(parser, max_new_tokens=100, temperature=0.8)
    parser.set_defaults(seed=4, top_p=0.9)
    parser.add_argument(
        "--save-plot",
        type=plot_path,
        default=Path("out/experts.png"),
        metavar="FILE",
        help="heat map of the expert load (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    params = sampling_params(args)
    try:
        args.save_plot.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"cannot make {args.save_plot.parent} for the figure: {error.strerror}") from None
    llm = load_llm(args, max_batch_size=1)
    loads: dict[str, list[LayerLoad]] = {}
    speeds: dict[str, str] = {}
    for language, beginning in BEGINNINGS.items():
        sys.stdout.write(f"[{language}] {beginning}")
        with report.watch_experts(llm, wanted=True) as records:
            output = stream_text(llm, beginning, params)
        print()
        loads[language] = report.expert_loads(llm, records)
        speeds[language] = report.request_speed(output.metrics)

    report.say(report.expert_table(loads))
    for language, line in speeds.items():
        report.say(f"{language:<10}{line}")
    try:
        check_plot(args.save_plot)
    except Dsv3Error as error:  # the story does not depend on matplotlib
        report.say(f"no figure: {error}")
    else:
        report.save_expert_plot(loads, args.save_plot)
