"""``dsv3 cost config_16B config_671B``: what a model costs, in one column per configuration. Needs no torch."""

import argparse
import dataclasses
import json

from dsv3.cli.configs import load_config, named_configs
from dsv3.cli.options import positive_int
from dsv3.cost import Cost, cost


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "configs",
        nargs="+",
        metavar="CONFIG",
        help=f"a configuration's file, a checkpoint's directory, or one of {', '.join(named_configs())}",
    )
    parser.add_argument(
        "--context",
        type=positive_int,
        default=4096,
        help="tokens that attention reaches back to (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object by configuration instead of the table")


def run(args: argparse.Namespace) -> None:
    costs = {name: cost(load_config(name), args.context) for name in args.configs}
    if args.json:
        print(json.dumps({name: dataclasses.asdict(each) for name, each in costs.items()}, indent=2))
    else:
        print(table(costs))


def table(costs: dict[str, Cost]) -> str:
    """Costs side by side as aligned text."""
    each = list(costs.values())
    parts = list(dict.fromkeys(part for one in each for part in one.parameters_by_part))
    context = f"{each[0].context:,}"
    rows: list[tuple[str, list[str]]] = [
        ("", list(costs)),
        ("parameters", [f"{one.parameters:,}" for one in each]),
        *((f"  {part}", [f"{one.parameters_by_part.get(part, 0):,}" for one in each]) for part in parts),
        ("activated per token", [billions(one.activated) for one in each]),
        ("  without the embedding", [billions(one.activated_without_embedding) for one in each]),
        ("MTP modules", [str(one.mtp_modules) for one in each]),
        ("  own parameters of one", [f"{one.parameters_per_mtp_module:,}" for one in each]),
        ("weights in BF16", [data_size(one.weight_bytes_bf16) for one in each]),
        ("weights in FP8", [data_size(one.weight_bytes_fp8) for one in each]),
        ("latent cache per token", [f"{one.cache_bytes_per_token:,} B" for one in each]),
        ("  full keys and values", [f"{one.uncompressed_cache_bytes_per_token:,} B" for one in each]),
        (f"  at {context} tokens", [data_size(one.cache_bytes_at_context) for one in each]),
        (f"FLOPs per token, prefill of {context}", [flops(one.prefill_flops_per_token) for one in each]),
        (f"  decode at {context}", [flops(one.decode_flops_per_token) for one in each]),
    ]
    label_width = max(len(label) for label, _ in rows)
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(each))]
    return "\n".join(
        label.ljust(label_width) + "".join("  " + cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        for label, cells in rows
    )


def billions(count: int) -> str:
    """37_552_282_624 -> "37.55 B"; below a billion in millions."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def data_size(size: int) -> str:
    """Bytes in decimal units, as disks and HBM are sold: 1_342_052_808_704 -> "1.34 TB"."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size / 1e3:.2f} kB"


def flops(count: float) -> str:
    """1.43e11 -> "142.8 GFLOP"."""
    return f"{count / 1e9:.1f} GFLOP" if count >= 1e9 else f"{count / 1e6:.1f} MFLOP"
