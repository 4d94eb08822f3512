"""The training runs behind the embedded model: what its settings were chosen by, what it is compared with.

    python -m dsv3.train.corpus CORPUS .data                                  once: the text, tokenised
    python benchmarks/embedded_training.py choices [--part 1/2] [--deadline 500] [--only muon]
    python benchmarks/embedded_training.py schedule final dense balance mtp

    choices   short runs, each with one setting changed against the first: optimiser, learning rate, decay, batch,
              shape, vocabulary (those other than the embedded one need .data/tok<size>/ with tokenizer.json and npz)
    schedule  half the preset's steps, with other shares of decay, learning rates and weight decays
    balance   the report's first claim in the small (V3 section 4.5.3): auxiliary loss, bias, nothing; two seeds each
    mtp       the same run with and without the MTP module; two seeds each
    dense     one expert that is always chosen, as wide as what a token of the embedded model activates: a dense model
    final     configs/train_tiny.json as it stands

Each run leaves its log in --out/<name>/ and one line in --out/runs.jsonl: bits per byte by language on the validation
text, loss by language and stream, balance, speed, parameters. Runs whose line is there already are passed over, so the
command may be repeated after an interrupt. --part k/n takes every n-th run: one process a GPU shares the work.
"""

import argparse
import dataclasses
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from dsv3 import cost
from dsv3.config import ModelConfig, TrainConfig
from dsv3.train.corpus import TokenStore
from dsv3.train.data import ValidationSet
from dsv3.train.evaluate import evaluate
from dsv3.train.log import read_log
from dsv3.train.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
PRESET = ROOT / "configs" / "train_tiny.json"

Run = dict[str, Any]
"""Changed keys of TrainConfig ("train") and ModelConfig ("model"), and the vocabulary's folder below --data."""

SHORT = {"total_steps": 1000, "warmup_steps": 100, "min_lr_ratio": 0.05, "eval_every": 500, "save_every": 10**6,
         "batch_tokens": 65536, "micro_batch_tokens": 65536}  # fmt: skip
ADAMW = {"optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.1}
MUON = {"optimizer": "muon", "lr": 3e-3, "weight_decay": 0.1}
DENSE = {"n_routed_experts": 1, "n_expert_groups": 1, "n_limited_groups": 1, "n_activated_experts": 1,
         "n_shared_experts": 0, "moe_inter_dim": 640, "route_scale": 1.0}  # fmt: skip


def choices() -> dict[str, Run]:
    """Short runs, the first two of which are what the others are compared with."""
    runs: dict[str, Run] = {
        "muon": {},
        "vocab-4096": {"model": {"vocab_size": 4096, "n_routed_experts": 40}, "vocabulary": "tok4096"},
        "adamw": {"train": ADAMW},
        "wide": {"model": {"dim": 384, "n_layers": 5, "n_heads": 6, "inter_dim": 1024, "n_routed_experts": 16}},
        "muon-lr-6e-3": {"train": {"lr": 6e-3}},
        "deep": {"model": {"n_layers": 8, "n_routed_experts": 24}},
        "muon-lr-1.5e-3": {"train": {"lr": 1.5e-3}},
        "six-active": {"model": {"n_activated_experts": 6}},
        "adamw-lr-6e-3": {"train": {**ADAMW, "lr": 6e-3}},
        "vocab-12288": {"model": {"vocab_size": 12288, "n_routed_experts": 24}, "vocabulary": "tok12288"},
        "muon-decay-0.3": {"train": {"weight_decay": 0.3}},
        "few-wide-experts": {"model": {"n_routed_experts": 16, "n_activated_experts": 2, "moe_inter_dim": 256}},
        "adamw-lr-1.5e-3": {"train": {**ADAMW, "lr": 1.5e-3}},
        "eight-active": {"model": {"n_activated_experts": 8}},
        "batch-32768": {"train": {"batch_tokens": 32768, "micro_batch_tokens": 32768, "total_steps": 2000}},
        "two-dense": {"model": {"n_dense_layers": 2, "n_routed_experts": 40}},
    }
    return {name: run | {"train": MUON | SHORT | run.get("train", {})} for name, run in runs.items()}


def schedules() -> dict[str, Run]:
    """Long enough to read the text five times, so that the strength of regularisation shows."""
    half = {"total_steps": 7000, "eval_every": 3500, "save_every": 10**6}
    falling = {"decay_fraction": 1.0, "min_lr_ratio": 0.0}
    runs: dict[str, Run] = {
        "half-constant": {"lr": 3e-3, "weight_decay": 0.3, "decay_fraction": 0.5, "min_lr_ratio": 0.02},
        "falling": {"lr": 3e-3, "weight_decay": 0.3} | falling,
        "falling-decay-1": {"lr": 3e-3, "weight_decay": 1.0} | falling,
        "falling-lr-5e-3-decay-0.6": {"lr": 5e-3, "weight_decay": 0.6} | falling,
    }
    return {name: {"train": half | changes} for name, changes in runs.items()}


COMPARED = MUON | SHORT | {"lr": 6e-3}  # what the comparisons of balancing and MTP have in common


def comparisons(kind: str) -> dict[str, Run]:
    """The runs of a kind that the card compares. ``balance-bias-0`` is ``muon-lr-6e-3`` of the choices once more."""
    if kind == "final":
        return {"final": {}}
    if kind == "dense":
        return {"dense": {"model": DENSE}}
    balancing = {
        "bias": {},
        "auxiliary": {"bias_update": 0.0, "balance_weight": 0.001},  # the weight of arXiv 2408.15664, section 4.1
        "nothing": {"bias_update": 0.0, "balance_weight": 0.0},
    }
    runs: dict[str, Run] = {}
    for seed in (0, 1):
        if kind == "balance":
            for method, changes in balancing.items():
                runs[f"balance-{method}-{seed}"] = {"train": changes | {"seed": seed}}
        else:
            runs[f"mtp-off-{seed}"] = {"train": {"seed": seed}, "model": {"n_mtp_layers": 0}}
    return {name: run | {"train": COMPARED | run["train"]} for name, run in runs.items()}


def train(name: str, run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """Train one run to its end and describe it."""
    base = TrainConfig.from_json(PRESET)
    model = dataclasses.replace(ModelConfig.from_json(base.model), **run.get("model", {}))
    out = args.out / name
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.json").write_text(json.dumps(model.to_dict(), indent=1) + "\n", encoding="utf-8")
    vocabulary = run.get("vocabulary")
    data = args.data / vocabulary if vocabulary else args.data
    config = dataclasses.replace(
        base,
        model=str(out / "model.json"),
        data=str(data),
        tokenizer=str(data) if vocabulary else base.tokenizer,
        out=str(out),
        **run.get("train", {}),
    )
    if args.steps:
        config = dataclasses.replace(config, total_steps=args.steps)
    if args.max_seconds:
        config = dataclasses.replace(config, max_seconds=args.max_seconds)
    if args.compile:
        config = dataclasses.replace(config, compile=args.compile)
    begin = time.monotonic()
    torch._dynamo.reset()  # what was compiled for other shapes; code for the same ones is found on disk
    trainer = Trainer(config, progress=False)
    result = trainer.run()
    seconds = time.monotonic() - begin
    held_out = TokenStore.load(data / "heldout.npz")
    sets = {
        language: ValidationSet(
            held_out, language, config.seq_len, config.micro_batch_size, mtp=model.n_mtp_layers, device=trainer.device
        )
        for language in held_out.languages
    }
    with torch.compiler.set_stance("force_eager"):
        verses = evaluate(trainer.model, sets, trainer.router, chunk=config.loss_chunk)
    logged = [record for record in read_log(out / "log.jsonl") if record["kind"] == "train"]
    return {
        "name": name,
        "changes": run,
        "steps": result.steps,
        "tokens": result.steps * config.batch_tokens,
        "parameters": cost.parameters(model),
        "activated": cost.activated_parameters(model),
        "bits_per_byte": result.evaluation["bits_per_byte"],
        "verses_bits_per_byte": verses["bits_per_byte"],
        "mtp_loss": result.evaluation.get("mtp_loss"),
        "mtp_agreement": result.evaluation.get("mtp_agreement"),
        "max_vio": result.evaluation["max_vio"],
        "last_losses": logged[-1]["loss_by_language"] if logged else {},
        "tokens_per_second": round(result.tokens_per_second),
        "seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name() if trainer.device.type == "cuda" else "cpu",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=["choices", "schedule", "final", "dense", "balance", "mtp"])
    parser.add_argument("--data", type=Path, default=Path(".data"), help="directory of token files")
    parser.add_argument("--out", type=Path, default=Path("out/embedded"), help="directory for logs and models")
    parser.add_argument("--part", default="1/1", help="k/n: take every n-th run, beginning with the k-th")
    parser.add_argument("--only", nargs="+", help="names of runs to take, in this order")
    parser.add_argument("--deadline", type=float, help="begin no run after so many seconds")
    parser.add_argument("--max-seconds", type=float, help="bound of every run; its schedule then ends with it")
    parser.add_argument("--steps", type=int, help="steps of every run, for trying the command out")
    parser.add_argument("--compile", help="overrides the preset's, for machines without a GPU")
    args = parser.parse_args()
    part, parts = map(int, args.part.split("/"))
    runs: dict[str, Run] = {}
    for kind in args.kinds:
        runs |= {"choices": choices, "schedule": schedules}.get(kind, lambda kind=kind: comparisons(kind))()
    names = args.only or list(runs)[part - 1 :: parts]
    args.out.mkdir(parents=True, exist_ok=True)
    book = args.out / "runs.jsonl"
    done = {json.loads(line)["name"] for line in book.read_text().splitlines()} if book.exists() else set()
    begin = time.monotonic()
    for name in names:
        if name in done or (args.deadline and time.monotonic() - begin > args.deadline):
            print(f"{name}: passed over", file=sys.stderr)
            continue
        line = train(name, runs[name], args)
        with book.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        bits = ", ".join(f"{language} {value:.4f}" for language, value in line["bits_per_byte"].items())
        print(f"{name}: {bits}; {line['tokens_per_second']:,} tokens/s, {line['seconds']} s", flush=True)
        gc.collect()  # the trainer holds its own recorded step
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
