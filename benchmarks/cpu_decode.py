"""Generation on a CPU beside ``transformers``: the same weights, data type, threads and token ids, in one process.

    python benchmarks/cpu_decode.py [--ckpt-path tiny] [--threads 2] [--batch 1 8] [--repetitions 5]

Our model is written with ``save_model`` and loaded by ``transformers``, so both hold the same numbers. Prompts are text
that the model itself samples, so that MTP meets what it was trained on. Both sides generate greedily past any
end-of-sequence token. First their tokens are compared; then, in each repetition, every side runs once after the other,
so that a slow spell of the machine hits all. For each side and repetition two calls are timed: one that generates a
single token (time to first token, and from it prefill tokens/s) and one that generates all. Decode tokens/s is what
the second call adds: batch x (new - 1) tokens over the difference of the two times.

The limit is that of memory: the bytes of all weights that a step touches, read once at the bandwidth that this run
measures on the same threads (of E experts a batch of B tokens touches E (1 - (1 - K/E)^B) where the load is even).
Caches may hold a part of a small model, so it is an orientation, not a bound. Writes
results/cpu_decode.cpu<threads>.json.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import Row, Samples, Setting, cpu_name, table, versions_of, write

from dsv3 import LLM, ModelConfig, SamplingParams
from dsv3.cost import Kind, matrices
from dsv3.weights import load_model, read_config, save_model

NAME = "cpu_decode"
PEER = "transformers"
BEGINNINGS = (
    "Once upon a time",
    "Había una vez",
    "从前",
    "One day",
    "Un día",
    "有一天",
    "In the beginning",
    "En el principio",
)
NOISY = 0.25
"""A relative spread that says more about the machine's other work than about the programs."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Generate = Callable[[list[list[int]], int], list[list[int]]]
"""(prompts, new tokens) -> the new token ids of each prompt."""


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    setting = Setting(
        name=NAME,
        device=f"{cpu_name()}, threads: {args.threads}",
        versions=versions_of("torch", "transformers"),
    )
    prompts = sample_prompts(args.ckpt_path, args.dtype, max(args.batch), args.prompt)
    sides: dict[str, Generate] = {"dsv3": ours(args, speculative=0)}
    if read_config(args.ckpt_path).n_mtp_layers:
        sides["dsv3 with MTP"] = ours(args, speculative=1)
    sides[PEER] = theirs(args)

    bandwidth = read_bandwidth()
    rows: list[Row] = []
    for batch in args.batch:
        rows += compare(sides, prompts[:batch], args, setting, bandwidth)
    print(f"\n{setting.device}; {setting.versions}; {args.dtype}; commit {setting.commit}\n\n{table(rows)}")
    worst = max(max(row.ours_spread, row.peer_spread or 0.0) for row in rows)
    if worst > NOISY:
        print(
            f"\nspread of up to ± {worst:.0%}: other programs were running; repeat on a quiet machine", file=sys.stderr
        )
    if not args.dry_run:
        print(f"\nwrote {write(rows, NAME, f'cpu{args.threads}')}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ckpt-path", default="tiny", help="checkpoint (default: the embedded model)")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens to generate")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--dry-run", action="store_true", help="print the table, write no result")
    return parser.parse_args()


def sample_prompts(path: str, dtype: str, n: int, length: int) -> list[list[int]]:
    """``n`` prompts of ``length`` token ids that the model itself writes, at temperature 0.8 with fixed seeds."""
    llm = LLM(path, device="cpu", dtype=dtype, max_batch_size=n)
    assert llm.tokenizer is not None
    starts = [llm.tokenizer.encode(BEGINNINGS[i % len(BEGINNINGS)])[:length] for i in range(n)]
    params = [
        SamplingParams(max_tokens=max(length - len(start), 1), temperature=0.8, seed=i, ignore_eos=True)
        for i, start in enumerate(starts)
    ]
    return [(out.prompt_token_ids + out.token_ids)[:length] for out in llm.generate(starts, params)]


def ours(args: argparse.Namespace, *, speculative: int) -> Generate:
    llm = LLM(
        args.ckpt_path,
        device="cpu",
        dtype=args.dtype,
        max_batch_size=max(args.batch),
        max_seq_len=args.prompt + args.new,
        speculative=speculative,
    )

    def generate(prompts: list[list[int]], new: int) -> list[list[int]]:
        outputs = llm.generate(prompts, SamplingParams(max_tokens=new, ignore_eos=True))
        return [output.token_ids for output in outputs]

    generate.llm = llm  # type: ignore[attr-defined]  (the acceptance is read from its statistics)
    return generate


def theirs(args: argparse.Namespace) -> Generate:
    from transformers import AutoModelForCausalLM

    # Without MTP modules: transformers does not load them, and would name each as unexpected.
    config = dataclasses.replace(read_config(args.ckpt_path), n_mtp_layers=0)
    ours = load_model(args.ckpt_path, config=config, dtype=DTYPES[args.dtype])
    with tempfile.TemporaryDirectory() as folder:
        save_model(ours, Path(folder), dtype=args.dtype)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[args.dtype]).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    @torch.inference_mode()
    def generate(prompts: list[list[int]], new: int) -> list[list[int]]:
        tokens_BS = torch.tensor(prompts)
        out_BS = model.generate(
            tokens_BS, attention_mask=torch.ones_like(tokens_BS), max_new_tokens=new, do_sample=False, use_cache=True
        )
        return out_BS[:, tokens_BS.shape[1] :].tolist()

    return generate


def compare(
    sides: dict[str, Generate], prompts: list[list[int]], args: argparse.Namespace, setting: Setting, bandwidth: float
) -> list[Row]:
    """The rows of one batch size: agreement first, then alternating repetitions of all sides."""
    batch = len(prompts)
    answers = {side: generate(prompts, args.new) for side, generate in sides.items()}  # warms up as well
    for side, tokens in answers.items():
        assert [len(t) for t in tokens] == [args.new] * batch, f"{side} did not generate {args.new} tokens"
    if "dsv3 with MTP" in sides:
        assert answers["dsv3 with MTP"] == answers["dsv3"], "speculation must not change a token"
    agreement = {
        "equal_sequences": sum(a == b for a, b in zip(answers["dsv3"], answers[PEER])),
        "sequences": batch,
        "equal_tokens_before_the_first_difference": sum(
            equal_prefix(a, b) for a, b in zip(answers["dsv3"], answers[PEER])
        ),
        "tokens": batch * args.new,
    }
    print(f"batch {batch}: {agreement['equal_sequences']} of {batch} sequences equal to {PEER}'s", file=sys.stderr)

    first: dict[str, list[float]] = {side: [] for side in sides}
    whole: dict[str, list[float]] = {side: [] for side in sides}
    for repetition in range(args.repetitions):
        for side, generate in sides.items():
            first[side].append(seconds(generate, prompts, 1))
            whole[side].append(seconds(generate, prompts, args.new))
        print(f"  repetition {repetition + 1} of {args.repetitions}", file=sys.stderr)

    def decode(side: str) -> Samples:
        return Samples.of(batch * (args.new - 1) / (b - a) for a, b in zip(first[side], whole[side]))

    def prefill(side: str) -> Samples:
        return Samples.of(batch * args.prompt / t for t in first[side])

    step_bytes = bytes_of_a_step(read_config(args.ckpt_path), batch, DTYPES[args.dtype].itemsize)
    limit = batch * bandwidth / step_bytes
    shape = {"batch": batch, "prompt": args.prompt, "new": args.new, "dtype": args.dtype} | agreement
    at = f"batch {batch}"
    rows = [
        setting.row(
            f"decode, {at}", decode("dsv3"), "tokens/s", "higher",
            peer=PEER, peer_samples=decode(PEER), limit=limit, notes=shape,
        )
    ]  # fmt: skip
    if "dsv3 with MTP" in sides:
        rows.append(
            setting.row(
                f"decode with MTP speculation, {at}",
                decode("dsv3 with MTP"),
                "tokens/s",
                "higher",
                peer=PEER,
                peer_samples=decode(PEER),
                notes=shape | {"acceptance": round(acceptance(sides["dsv3 with MTP"], prompts, args.new), 3)},
            )
        )
    rows += [
        setting.row(
            f"prefill of {args.prompt}, {at}", prefill("dsv3"), "tokens/s", "higher",
            peer=PEER, peer_samples=prefill(PEER), notes=shape,
        ),
        setting.row(
            f"time to first token, {at}", Samples.of(first["dsv3"]), "s", "lower",
            peer=PEER, peer_samples=Samples.of(first[PEER]), notes=shape,
        ),
    ]  # fmt: skip
    return rows


def seconds(generate: Generate, prompts: list[list[int]], new: int) -> float:
    start = time.perf_counter()
    generate(prompts, new)
    return time.perf_counter() - start


def acceptance(generate: Generate, prompts: list[list[int]], new: int) -> float:
    """Part of the drafted tokens that were right, over one more call."""
    stats = generate.llm.stats  # type: ignore[attr-defined]
    drafted, accepted = stats.drafted, stats.accepted
    generate(prompts, new)
    return (stats.accepted - accepted) / max(stats.drafted - drafted, 1)


def equal_prefix(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def bytes_of_a_step(config: ModelConfig, batch: int, itemsize: int) -> float:
    """Bytes of the weights that a decode step of ``batch`` tokens touches, with the load even over the experts."""
    touched = 1 - (1 - config.n_activated_experts / config.n_routed_experts) ** batch
    return itemsize * sum(
        matrix.parameters * (touched if matrix.part == "routed experts" else 1.0)
        for matrix in matrices(config)
        if matrix.kind is not Kind.TABLE
    )


def read_bandwidth() -> float:
    """Bytes/s of summing 512 MB, the best of five."""
    data = torch.rand(2**27)
    times: list[float] = []
    for _ in range(5):
        start = time.perf_counter()
        data.sum()
        times.append(time.perf_counter() - start)
    return data.nbytes / min(times)


if __name__ == "__main__":
    main()
