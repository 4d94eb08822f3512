"""``dsv3 version``: what to name in a report about a fault."""

import argparse
import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

import dsv3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Takes no argument of its own."""


def run(args: argparse.Namespace) -> None:
    rows = {"dsv3": dsv3.__version__, "python": f"{platform.python_version()} on {platform.system()}"}
    for package in ("torch", "triton", "transformers"):
        try:
            rows[package] = installed_version(package)
        except PackageNotFoundError:
            rows[package] = "not installed"
    rows["device"] = _device() if rows["torch"] != "not installed" else "unknown without torch"
    for name, value in rows.items():
        print(f"{name:<13}{value}")


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return f"{len(names)} x {names[0]}, CUDA {torch.version.cuda}"
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"
