"""A whole model on one GPU with random weights: tokens per second of the engine's decode step, and of prefill.

    python benchmarks/model_decode.py                                     config_16B in BF16
    python benchmarks/model_decode.py --config config_671B --layers 5 --dtype fp8

Random weights send tokens to experts about as evenly as a trained, balanced model does; how many experts a step touched
is said beside its time. Tokens per second are wall clock over many steps of `Engine.step`: scheduling, sampling and
Python are in it. "graph" is the recorded step alone. The limit is that of the bytes: all weights that the step needs,
of the routed experts only the touched ones, and the latents of the context, read once at 3.0 TB/s (measured read
bandwidth of an H100); for prefill that of the arithmetic, at 780 TFLOPS in BF16. Writes
results/model_decode.<device>.json; ``--profile`` lists the kernels of a step.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path

import torch
from common import Row, Samples, Setting, table, versions_of, write

from dsv3 import LLM, ModelConfig, SamplingParams, Transformer, cost
from dsv3.engine.engine import Engine
from dsv3.layers.moe import MoE
from dsv3.probe import capture

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
READ = 3.0e12  # bytes per second
BF16 = 780e12  # FLOP per second
DTYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


def random_model(config: ModelConfig, dtype: torch.dtype) -> Transformer:
    torch.manual_seed(0)
    return Transformer(config, dtype=dtype, device="cuda").eval()


def needed_bytes(model: Transformer, touched: float, latents: int) -> float:
    """What one decode step has to read: ``touched`` experts of each MoE layer, and ``latents`` cached tokens."""
    config = model.config
    experts = sum(p.nbytes for module in model.layers.modules() if isinstance(module, MoE)
                  for p in module.experts.parameters())  # fmt: skip
    rest = sum(p.nbytes for p in (*model.layers.parameters(), *model.norm.parameters(), *model.head.parameters()))
    cache = latents * config.n_layers * config.latent_dim * 2
    return rest - experts + experts * touched / config.n_routed_experts + cache


def prompts(n: int, length: int, vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(2, vocab_size, (n, length), generator=generator).tolist()


def start(llm: LLM, n: int, length: int, new: int) -> Engine:
    """An engine whose n requests have read their prompts and are about to decode."""
    params = SamplingParams(max_tokens=new, temperature=0)
    engine = llm.engine
    for prompt in prompts(n, length, llm.config.vocab_size):
        engine.add(llm._sequence(prompt, params))
    while any(seq.n_computed < seq.n_prompt for seq in (*engine.scheduler.running, *engine.scheduler.waiting)):
        engine.step()
    return engine


def stop(engine: Engine) -> None:
    for seq in (*engine.scheduler.running, *engine.scheduler.waiting):
        engine.abort(seq)


def touched_experts(model: Transformer, engine: Engine) -> float:
    """Experts of a MoE layer that one step visits, on average over the layers."""
    with capture(model, "gate.indices_TK") as records:
        engine.step()
    return statistics.fmean(len(tensors[0].unique()) for tensors in records.values())


def decode(llm: LLM, n: int, length: int, steps: int, repeats: int) -> tuple[Samples, Samples, float]:
    """Seconds per engine step, seconds per recorded step alone, experts touched."""
    engine = start(llm, n, length, steps * repeats + 20)
    touched = touched_experts(llm.model, engine)
    for _ in range(5):
        engine.step()
    walls = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(steps):
            engine.step()
        torch.cuda.synchronize()
        walls.append((time.perf_counter() - begin) / steps)
    stop(engine)
    graphs = engine.runner.graphs
    alone = walls
    if graphs is not None:
        size = next(size for size in graphs.sizes if size >= n)
        recorded = graphs.recorded[size, 1].graph
        alone = [timed(recorded.replay, steps) for _ in range(repeats)]
    return Samples.of(walls), Samples.of(alone), touched


def timed(call, times: int) -> float:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    events[0].record()
    for _ in range(times):
        call()
    events[1].record()
    torch.cuda.synchronize()
    return events[0].elapsed_time(events[1]) / 1e3 / times


def prefill(llm: LLM, n: int, length: int, repeats: int) -> Samples:
    seconds = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        engine = start(llm, n, length, 2)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
        stop(engine)
    return Samples.of(n * length / s for s in seconds[1:])


def profile(llm: LLM, n: int, length: int) -> str:
    """Kernels of some decode steps by the device time they take."""
    engine = start(llm, n, length, 40)
    for _ in range(3):
        engine.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(10):
            engine.step()
        torch.cuda.synchronize()
    stop(engine)
    return kernel_table(profiler)


def profile_prefill(llm: LLM, n: int, length: int) -> str:
    """Kernels of one prefill, of which the second of two is looked at."""
    stop(start(llm, n, length, 2))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        stop(start(llm, n, length, 2))
        torch.cuda.synchronize()
    return kernel_table(profiler)


def kernel_table(profiler: torch.profiler.profile) -> str:
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)[:24]
    lines = [f"{event.self_device_time_total / 1e3:10.3f} ms {event.count:6} x {event.key[:90]}" for event in events]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="config_16B", help="a file of configs/ without its .json")
    parser.add_argument("--layers", type=int, help="only so many layers")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--context", type=int, default=520, help="tokens in the cache of each request")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prefill", type=int, nargs="*", default=[1, 32], help="prompts of 2048 tokens at once")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("this benchmark needs a CUDA device", file=sys.stderr)
        return 1
    config = ModelConfig.from_json(CONFIGS / f"{args.config}.json")
    if args.layers:
        config = dataclasses.replace(config, n_layers=args.layers, n_mtp_layers=0)
    name = f"{args.config}{f', {args.layers} layers' if args.layers else ''}, {args.dtype.upper()}"
    begin = time.monotonic()
    llm = LLM.from_model(
        random_model(config, DTYPES[args.dtype]), max_batch_size=max([*args.batches, *args.prefill, 1]),
        max_seq_len=min(4096, config.max_context), max_step_tokens=16384,
    )  # fmt: skip
    torch.cuda.synchronize()
    print(
        f"{name}: made in {time.monotonic() - begin:.1f} s, {torch.cuda.memory_allocated() / 2**30:.1f} GiB", flush=True
    )
    device = torch.cuda.get_device_name()
    setting = Setting(name="model_decode", device=device, versions=versions_of("torch", "triton"))
    rows: list[Row] = []
    for n in args.batches:
        begin = time.monotonic()
        walls, alone, touched = decode(llm, n, args.context, args.steps, args.repeats)
        limit = READ / needed_bytes(llm.model, touched, n * args.context)
        speed = Samples.of(n / s for s in walls.values)
        notes = {"ms per step": walls.median * 1e3, "ms per graph": alone.median * 1e3, "experts touched": touched}
        rows.append(
            setting.row(f"{name}, decode, batch {n}", speed, "tokens/s", "higher", limit=n * limit, notes=notes)
        )
        print(f"batch {n}: {speed.median:,.0f} tokens/s, {walls.median * 1e3:.3f} ms a step, graph alone"
              f" {alone.median * 1e3:.3f} ms, limit {1e3 / limit:.3f} ms, {touched:.1f} experts touched a layer"
              f" ({time.monotonic() - begin:.1f} s)", flush=True)  # fmt: skip
        if args.profile:
            print(profile(llm, n, args.context), flush=True)
    for n in args.prefill:
        speed = prefill(llm, n, 2048, max(2, args.repeats // 2))
        flops = 2 * cost.activated_parameters(config)
        rows.append(setting.row(f"{name}, prefill of {n} x 2048", speed, "tokens/s", "higher", limit=BF16 / flops))
        print(f"prefill {n} x 2048: {speed.median:,.0f} tokens/s", flush=True)
        if args.profile:
            print(profile_prefill(llm, n, 2048), flush=True)
    print(table(rows))
    kind = next((part for part in ("H100", "H200", "A100") if part in device), device.replace(" ", "-"))
    print(write(rows, f"model_decode.{args.config}.{args.dtype}", kind))
    return 0


if __name__ == "__main__":
    sys.exit(main())
