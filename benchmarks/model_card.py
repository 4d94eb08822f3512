"""The figures of the embedded model's card, from the released FP8 weights, computed in FP32 on a CPU.

    python -m dsv3.train.corpus CORPUS .data        once: the folder of text that the model was trained on
    python benchmarks/model_card.py [--data .data] [--documents 24] [--threads 1]

    bits per byte      by language: the first documents of val.npz (other chapters of those works were trained on) and
                       all of heldout.npz (Ruth, Jonah and Mark, of which nothing was), in rows of the whole context
    MTP agreement      on the same validation text: how often the module's greedy choice is the main model's own, one
                       position later
    MTP acceptance     the same while the model writes: 128 tokens after the first 32 of 20 held-out chapters, greedy
                       and sampled as ``dsv3 demo`` does. Beside it stands the share of 4-grams that repeat an earlier
                       one of the same text: a text that goes round in circles is easy to predict
    MaxVio             by layer, over the validation text of all languages (arXiv 2408.15664 section 4.1)
    language distance  by layer: total variation between the routings of two languages, mean over the pairs. 0: every
                       expert serves them alike; 1: no expert serves two of them

With the repetition rows the results keep samples: a beginning in each language, continued greedily and with two seeds,
as they came. Everything is counted once: a second run gives the same. About four minutes on one free core. Writes
results/model_card.cpu<threads>.json.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
from common import Row, Setting, cpu_name, table, versions_of, write
from torch import Tensor
from tqdm import tqdm

from dsv3 import LLM, SamplingParams, capture
from dsv3.engine.outputs import RequestOutput
from dsv3.errors import Dsv3Error
from dsv3.expert_load import LayerLoad, loads_from_records, max_violation, shares
from dsv3.train.balance import Router
from dsv3.train.corpus import TokenStore
from dsv3.train.data import ValidationSet
from dsv3.train.evaluate import evaluate
from dsv3.train.trainer import first_documents

NAME = "model_card"
ROWS_AT_ONCE = 4  # of 1,024 tokens: more would not be faster on one thread
CHAPTERS, PROMPT, NEW = 20, 32, 128  # per language, tokens, tokens
SAMPLED = {"temperature": 0.7, "top_p": 0.95}  # as `dsv3 demo` samples
SEEDS = (1, 2)
SAMPLE_TOKENS = 100
BEGINNINGS = {"en": "Once upon a time there was a", "es": "Había una vez un", "zh": "从前有一个"}


def main() -> int:
    args = arguments()
    torch.set_num_threads(args.threads)
    try:
        validation, held_out = (TokenStore.load(args.data / name) for name in ("val.npz", "heldout.npz"))
        llm = LLM(args.ckpt_path, device="cpu", dtype="fp32", max_batch_size=CHAPTERS, speculative=1)
        for store in (validation, held_out):
            store.check(vocab_size=llm.config.vocab_size, tokenizer=llm.tokenizer)
    except Dsv3Error as error:
        print(f"{error}\nThe text is prepared by: python -m dsv3.train.corpus CORPUS {args.data}", file=sys.stderr)
        return 1
    device = f"{cpu_name()}, threads: {args.threads}"
    setting = Setting(name=NAME, device=device, versions=versions_of("torch"))
    rows = [
        *of_held_out_text(llm, first_documents(validation, args.documents), held_out, setting),
        *of_generation(llm, held_out, setting),
    ]
    print(f"{setting.device}; {setting.versions}; commit {setting.commit}\n\n{table(rows)}")
    for row in rows:
        for sample in row.notes.get("samples", ()):
            print(f"\n{sample}")
    if not args.dry_run:
        print(f"\nwrote {write(rows, NAME, f'cpu{args.threads}')}")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt-path", default="tiny", help="checkpoint with an MTP module (default: the embedded one)")
    parser.add_argument("--data", type=Path, default=Path(".data"), help="directory with val.npz and heldout.npz")
    parser.add_argument("--documents", type=int, default=24, help="validation documents per language")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry-run", action="store_true", help="print the table, write no result")
    return parser.parse_args()


def of_held_out_text(llm: LLM, validation: TokenStore, held_out: TokenStore, setting: Setting) -> list[Row]:
    """Bits per byte of both texts; on the first also MTP agreement, balance, and what the languages' routings share."""
    results: dict[str, dict[str, dict[str, Any]]] = {}
    loads: dict[str, list[LayerLoad]] = {}
    for name, store in (("validation", validation), ("held-out verses", held_out)):
        results[name] = {}
        for language in tqdm(store.languages, desc=name, unit="language", file=sys.stderr):
            text = ValidationSet(store, language, llm.config.max_context, ROWS_AT_ONCE, mtp=llm.config.n_mtp_layers)
            with capture(llm.model, "gate.indices_TK") as records:
                router = Router(llm.model, llm.config)
                results[name][language] = evaluate(llm.model, {language: text}, router) | {"bytes": text.n_bytes}
            if store is validation:
                loads[language] = loads_from_records(records, llm.config.n_routed_experts)

    rows = []
    for name, by_language in results.items():
        for language, result in by_language.items():
            bits, notes = result["bits_per_byte"][language], {"bytes": result["bytes"]}
            rows.append(figure(setting, f"bits per byte, {name}, {language}", bits, "bits/byte", "lower", notes))
    for language, result in results["validation"].items():
        notes = {"mtp_loss": round(result["mtp_loss"], 4)}
        rows.append(
            figure(setting, f"MTP agreement, validation, {language}", result["mtp_agreement"], "share", "higher", notes)
        )
    for layer in range(len(next(iter(loads.values())))):
        counts = {language: of_layers[layer].counts_E for language, of_layers in loads.items()}
        block = next(iter(loads.values()))[layer].name
        alone = {language: round(max_violation(counts_E), 2) for language, counts_E in counts.items()}
        all_E = torch.stack(list(counts.values())).sum(0)
        rows.append(
            figure(
                setting, f"MaxVio, {block}", max_violation(all_E), "of the mean load", "lower", {"by_language": alone}
            )
        )
        rows.append(
            figure(
                setting,
                f"language distance, {block}",
                language_distance(counts),
                "0 to 1",
                "higher",
                {"language_shares_by_expert": language_shares(counts)},
            )
        )
    return rows


def of_generation(llm: LLM, held_out: TokenStore, setting: Setting) -> list[Row]:
    """Acceptance of the drafts, and repetition, of what the model writes after the beginnings of held-out chapters."""
    rows = []
    for language, documents in held_out.languages.items():
        prompts = [documents[d][:PROMPT].tolist() for d in range(min(CHAPTERS, len(documents)))]
        for mode, options, seeds in (("greedy", {}, (None,)), ("sampled", SAMPLED, SEEDS)):
            print(f"{language}, {mode}: {len(prompts)} continuations", file=sys.stderr)
            params = [SamplingParams(max_tokens=NEW, seed=i, ignore_eos=True, **options) for i in range(len(prompts))]
            outputs = llm.generate(prompts, params)
            notes = {"prompts": len(prompts), "prompt": PROMPT, "new": NEW} | options
            rows.append(
                figure(setting, f"MTP acceptance, {mode}, {language}", acceptance(outputs), "share", "higher", notes)
            )
            repeated = sum(repeated_share(output.token_ids) for output in outputs) / len(outputs)
            notes = notes | {"samples": samples(llm, BEGINNINGS[language], options, seeds)}
            rows.append(figure(setting, f"repeated 4-grams, {mode}, {language}", repeated, "share", "lower", notes))
    return rows


def samples(
    llm: LLM, beginning: str, options: dict[str, float], seeds: Sequence[int | None]
) -> list[dict[str, str | int | None]]:
    """One text for each seed, unedited."""
    params = [SamplingParams(max_tokens=SAMPLE_TOKENS, seed=seed, **options) for seed in seeds]  # type: ignore[arg-type]
    outputs = llm.generate([beginning] * len(params), params)
    return [{"seed": seed, "prompt": beginning, "text": output.text} for seed, output in zip(seeds, outputs)]


def figure(
    setting: Setting, case: str, value: float, unit: str, better: Literal["higher", "lower"], notes: dict[str, Any]
) -> Row:
    """A row of one exact figure, to four digits."""
    exact = float(f"{value:.4g}")
    return Row(case=case, ours=exact, ours_spread=0.0, unit=unit, better=better, notes=notes, **vars(setting))


def acceptance(outputs: Sequence[RequestOutput]) -> float:
    """Drafts that were the main model's own choice, as a part of all."""
    return sum(output.metrics.accepted for output in outputs) / sum(output.metrics.drafted for output in outputs)


def repeated_share(token_ids: Sequence[int], n: int = 4) -> float:
    """Part of the n-grams that stand earlier in the same text already; 0 for a text shorter than n."""
    grams = [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def language_distance(counts: Mapping[str, Tensor]) -> float:
    """Total variation, half the sum of |share_E - share'_E|, between two languages' routings; mean over the pairs."""
    pairs = list(combinations(map(shares, counts.values()), 2))
    return sum(float((one_E - other_E).abs().sum()) / 2 for one_E, other_E in pairs) / len(pairs)


def language_shares(counts: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Of the routing that each expert gets, the part of each language, as if all had as many tokens."""
    share_LE = torch.stack([shares(counts_E) for counts_E in counts.values()])
    part_LE = share_LE / share_LE.sum(0).clamp(min=1e-12)
    return {language: [round(part, 3) for part in part_E.tolist()] for language, part_E in zip(counts, part_LE)}


if __name__ == "__main__":
    sys.exit(main())
