"""Tokens per second of the training step at the embedded model's shape, what bounds it, and that it never waits.

    python benchmarks/train_speed.py [--seconds 60] [--compile no loss all] [--batch 65536] [--micro 65536] [--profile]

Every combination of the settings is trained on random tokens for ``--seconds`` after a warm-up that compiles; the clock
stops only when the device has finished. ``--data DIR`` takes prepared text instead: its routing is less even. On a GPU
one step then runs with torch's synchronisation guard set to raise, and ``--profile`` lists the operations that the
device spends its time on. The limit is that of the arithmetic: the FLOPs of forward and backward pass (3 times the
forward's, MTP module included, attention over half the sequence on average) at the dense BF16 rate of the device.
A model as narrow as ours is bound by memory and launches: the share is small, and says how far a larger one could go.
Writes results/train_speed.<device>.json.
"""

import argparse
import dataclasses
import itertools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import Row, Samples, Setting, cpu_name, table, versions_of, write

from dsv3.config import ModelConfig, TrainConfig
from dsv3.cost import Kind, matrices, mtp_matrices
from dsv3.train.corpus import Documents, TokenStore
from dsv3.train.trainer import Trainer

NAME = "train_speed"
PRESET = Path(__file__).resolve().parent.parent / "configs" / "train_tiny.json"
WARM_UP_STEPS = 8
STEPS_PER_SAMPLE = 10
# Dense BF16 tensor-core rate in FLOP/s by a part of the device's name (vendor's data sheets, without sparsity).
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Forward and backward pass, MTP modules with their own pass through the head included."""
    multiplied = (Kind.LINEAR, Kind.PLAIN)
    main = sum(m.activated for m in matrices(config) if m.kind in multiplied)
    mtp = sum(m.activated for m in mtp_matrices(config) if m.kind in multiplied) + config.vocab_size * config.dim
    blocks = config.n_layers + config.n_mtp_layers
    pairs = blocks * config.n_heads * (config.qk_head_dim + config.v_head_dim) * (seq_len + 1) / 2
    return 3 * 2 * (main + config.n_mtp_layers * mtp + pairs)


def random_data(directory: Path, config: TrainConfig, vocab_size: int) -> str:
    """Token files of some hundred steps: where an epoch begins, its plan is sent to the device, which makes it wait."""
    rng = np.random.default_rng(0)
    for name, rows in (("train", 400 * config.batch_tokens // config.seq_len + 1), ("val", 4)):
        tokens = rng.integers(2, vocab_size, rows * config.seq_len + 8).astype(np.uint16)
        # Documents of 2,200 tokens on average, as in the text that the embedded model learns from.
        inner = np.sort(rng.choice(np.arange(2, len(tokens) - 2, 2), len(tokens) // 2200, replace=False))
        starts = np.array([0, *inner, len(tokens)], dtype=np.int64)
        documents = Documents(tokens, starts, 3 * np.diff(starts))
        TokenStore({"random": documents}, "0" * 64, vocab_size, 0, 1).save(directory / f"{name}.npz")
    return str(directory)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(trainer: Trainer, seconds: float) -> Samples:
    """Tokens per second of runs of STEPS_PER_SAMPLE steps, for about ``seconds``."""
    tokens = trainer.config.batch_tokens
    begin = time.perf_counter()
    for _ in range(WARM_UP_STEPS):
        trainer.take_step()
    synchronize(trainer.device)
    print(f"  warm-up {time.perf_counter() - begin:.1f} s", file=sys.stderr)
    speeds = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not speeds:
        begin = time.perf_counter()
        for _ in range(STEPS_PER_SAMPLE):
            trainer.take_step()
        synchronize(trainer.device)
        speeds.append(STEPS_PER_SAMPLE * tokens / (time.perf_counter() - begin))
    trainer.check_finite()
    return Samples.of(speeds)


def waits_for_the_device(trainer: Trainer) -> str | None:
    """The first operation of a step that waits for the GPU, as torch words it; None if there is none."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.take_step()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def profile(trainer: Trainer, rows: int) -> str:
    """The operations of three steps by the device's time, then by the host's."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    on_gpu = trainer.device.type == "cuda"
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(3):
            trainer.take_step()
        synchronize(trainer.device)
    keys = ["self_cuda_time_total", "self_cpu_time_total"] if on_gpu else ["self_cpu_time_total"]
    averages = profiler.key_averages()
    return "\n".join(averages.table(sort_by=key, row_limit=rows, max_name_column_width=72) for key in keys)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(PRESET), help="training preset")
    parser.add_argument("--data", help="directory of token files; default: random tokens")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each combination")
    parser.add_argument(
        "--compile", nargs="+", choices=["no", "loss", "all", "graph"], default=["no", "loss", "all", "graph"]
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[65536], help="tokens per optimiser step")
    parser.add_argument("--micro", nargs="+", type=int, default=[65536], help="tokens per micro-batch")
    parser.add_argument("--profile", action="store_true", help="list the most expensive operations")
    parser.add_argument("--rows", type=int, default=25, help="operations listed by --profile")
    args = parser.parse_args()
    device = torch.device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    setting = Setting(name=NAME, device=name, versions=versions_of("torch", "triton"))
    peak = next((rate for part, rate in PEAK.items() if part in name), None)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        base = TrainConfig.from_json(args.config)
        model_config = ModelConfig.from_json(base.model)
        limit = peak / flops_per_token(model_config, base.seq_len) if peak else None
        for mode, batch, micro in itertools.product(args.compile, args.batch, args.micro):
            case = f"compile {mode}, {batch} tokens a step, {micro} a micro-batch"
            print(case, file=sys.stderr)
            config = dataclasses.replace(
                base,
                tokenizer=None,
                out=temporary,
                device=args.device,
                dtype=args.dtype,
                compile=mode,
                batch_tokens=batch,
                micro_batch_tokens=micro,
                total_steps=10**9,
            )
            data = args.data or random_data(Path(temporary), config, model_config.vocab_size)
            trainer = Trainer(dataclasses.replace(config, data=data), progress=False)
            notes: dict[str, object] = {}
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            speed = measure(trainer, args.seconds)
            if device.type == "cuda":
                notes["peak_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
                notes["waits"] = waits_for_the_device(trainer)
            print(f"  {speed.median:,.0f} tokens/s, {notes}", file=sys.stderr)
            rows.append(setting.row(case, speed, "tokens/s", "higher", limit=limit, notes=notes))
            if args.profile:
                print(profile(trainer, args.rows))
            del trainer
            torch._dynamo.reset()
    print(table(rows))
    write(rows, NAME, name.split()[1] if device.type == "cuda" and " " in name else device.type)


if __name__ == "__main__":
    main()
