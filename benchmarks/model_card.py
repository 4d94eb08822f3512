"""The figures of the embedded model's card, from the released FP8 weights, computed in FP32 on a CPU.

    python -m dsv3.train.corpus CORPUS .data        once: the folder of text that the model was trained on
    python benchmarks/model_card.py [--ckpt-path tiny] [--data .data] [--threads 2]

    bits per byte      by language: all of val.npz (other chapters of those works were trained on) and all of
                       heldout.npz (Ruth, Jonah and Mark, of which nothing was), in rows of the whole context
    MTP agreement      on the same validation text: how often the module's greedy choice is the main model's own, one
                       position later
    MaxVio             by layer, over the validation text of all languages (arXiv 2408.15664 section 4.1)
    language distance  by layer: total variation between the routings of two languages, mean over the pairs. 0: every
                       expert serves them alike; 1: no expert serves two of them

What the model writes: 128 tokens after the first 32 of 20 held-out chapters a language, greedy and sampled as
``dsv3 demo`` does, and samples of 120 tokens after other beginnings, kept as they came:

    speculative = plain   texts that speculative greedy decoding writes token by token as plain decoding does
    MTP acceptance        drafts that were the main model's own choice; beside it
    repeated 4-grams      the share of 4-grams that repeat an earlier one of the same text: a text that goes round in
                          circles is easy to predict
    longest verbatim run  tokens in a row that stand in the training text of that language too, in all these texts; and
                          in the chapters' true continuations, for comparison
    other script          texts with letters of a script that the language is not written in
    other language leads  English texts with more Spanish than English function words, and the reverse

needle accuracy: see needle_map.py. Everything is counted once: a second run gives the same. About ten minutes on two
free cores. Writes results/model_card.cpu<threads>.json, of which docs/figures/embedded_model.py draws its figures.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from common import Row, Setting, cpu_name, table, versions_of, write
from needle_map import DEPTHS, LENGTHS, MAX_ANSWER, Grid, accuracy, ask, summary
from text_figures import FUNCTION_WORDS, Run, foreign_letters, leading_language, longest_runs, repeated_share
from torch import Tensor
from tqdm import tqdm

from dsv3 import LLM, SamplingParams, capture
from dsv3.engine.outputs import RequestOutput
from dsv3.errors import Dsv3Error
from dsv3.expert_load import LayerLoad, loads_from_records, max_violation, shares
from dsv3.train.balance import Router
from dsv3.train.corpus import TokenStore, first_documents
from dsv3.train.data import ValidationSet
from dsv3.train.evaluate import evaluate

NAME = "model_card"
ROWS_AT_ONCE = 4  # of 1,024 tokens: more would not be faster on two threads
CHAPTERS, PROMPT, NEW = 20, 32, 128  # per language, tokens, tokens
SAMPLED = {"temperature": 0.8, "top_p": 0.9}  # as `dsv3 demo` samples
SAMPLE_TOKENS = 120
BEGINNINGS = {
    "en": (
        "Once upon a time there was a",
        "The captain looked at the sea and",
        '"My dear child," said the old woman, "',
    ),
    "es": ("Había una vez un", "El capitán miró el mar y", "—Hija mía —dijo la vieja—,"),
    "zh": ("话说", "那时正是三月天气，", "老太太笑道：“"),
}
"""A tale, a description, a dialogue. The tale is continued greedily, and each of them sampled once."""


@dataclass(frozen=True)
class Text:
    """A text of the model's: ``token_ids`` and ``text`` without the prompt."""

    prompt: str | None  # None: the beginning of a held-out chapter
    seed: int | None
    token_ids: list[int]
    text: str


def main() -> int:
    args = arguments()
    torch.set_num_threads(args.threads)
    try:
        llm = LLM(args.ckpt_path, device="cpu", dtype="fp32", max_batch_size=CHAPTERS, speculative=1)
    except Dsv3Error as error:
        print(error, file=sys.stderr)
        return 1
    try:
        stores = [TokenStore.load(args.data / f"{name}.npz") for name in ("train", "val", "heldout")]
        for store in stores:
            store.check(vocab_size=llm.config.vocab_size, tokenizer=llm.tokenizer)
    except Dsv3Error as error:
        print(f"{error}\nThe text is prepared by: python -m dsv3.train.corpus CORPUS {args.data}", file=sys.stderr)
        return 1
    train, validation, held_out = stores
    if max(args.lengths) + MAX_ANSWER > llm.config.max_context:
        room = f"{llm.config.max_context} tokens of context, of which {MAX_ANSWER} are for the answer"
        print(f"--lengths {max(args.lengths)} is too long: the model has {room}.", file=sys.stderr)
        return 1
    device = f"{cpu_name()}, threads: {args.threads}"
    setting = Setting(name=NAME, device=device, versions=versions_of("torch"))
    if args.documents:
        validation = first_documents(validation, args.documents)
    grid = Grid(tuple(args.lengths), DEPTHS, args.trials)
    rows = [
        *of_held_out_text(llm, validation, held_out, setting),
        *of_generation(llm, held_out, train, args.chapters, setting),
        *of_recall(llm, validation, grid, setting),
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
    parser.add_argument("--data", type=Path, default=Path(".data"), help="directory with train, val and heldout.npz")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--documents", type=int, help="only the first validation documents of each language")
    parser.add_argument("--chapters", type=int, default=CHAPTERS, help="held-out chapters to continue per language")
    parser.add_argument("--trials", type=int, default=20, help="needles per language, length and depth")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of the prompts with a needle")
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
            counts = {"bytes": text.n_bytes, "documents": len(store[language])}
            with capture(llm.model, "gate.indices_TK") as records:
                router = Router(llm.model, llm.config)
                results[name][language] = evaluate(llm.model, {language: text}, router) | {"counts": counts}
            if store is validation:
                loads[language] = loads_from_records(records, llm.config.n_routed_experts)

    rows = []
    for name, by_language in results.items():
        for language, result in by_language.items():
            bits, notes = result["bits_per_byte"][language], result["counts"]
            rows.append(figure(setting, f"bits per byte, {name}, {language}", bits, "bits/byte", "lower", notes))
    for language, result in results["validation"].items():
        notes = {"mtp_loss": round(result["mtp_loss"], 4)}
        rows.append(
            figure(setting, f"MTP agreement, validation, {language}", result["mtp_agreement"], "share", "higher", notes)
        )
    return rows + of_routing(loads, setting)


def of_routing(loads: Mapping[str, Sequence[LayerLoad]], setting: Setting) -> list[Row]:
    """For every layer its MaxVio and the distance between languages; in the notes what stands behind them."""
    rows = []
    for layers in zip(*loads.values(), strict=True):
        block, counts = layers[0].name, {language: layer.counts_E for language, layer in zip(loads, layers)}
        alone = {language: round(max_violation(counts_E), 3) for language, counts_E in counts.items()}
        all_E = torch.stack(list(counts.values())).sum(0)
        notes: dict[str, Any] = {"by_language": alone}
        rows.append(figure(setting, f"MaxVio, {block}", max_violation(all_E), "of the mean load", "lower", notes))
        notes = {"language_shares_by_expert": language_shares(counts)}
        distance = language_distance(counts)
        rows.append(figure(setting, f"language distance, {block}", distance, "0 to 1", "higher", notes))
    return rows


def of_generation(llm: LLM, held_out: TokenStore, train: TokenStore, chapters: int, setting: Setting) -> list[Row]:
    """What can be counted in the model's continuations of held-out chapters, and in the samples."""
    rows = []
    for language, documents in held_out.languages.items():
        some = [documents[d] for d in range(min(chapters, len(documents)))]
        prompts = [document[:PROMPT].tolist() for document in some]
        texts: dict[str, list[Text]] = {}
        for mode, options in (("greedy", {}), ("sampled", SAMPLED)):
            print(f"{language}, {mode}: {len(prompts)} continuations", file=sys.stderr)
            params = [SamplingParams(max_tokens=NEW, seed=i, ignore_eos=True, **options) for i in range(len(prompts))]
            outputs = llm.generate(prompts, params)
            if mode == "greedy":
                rows.append(
                    same_without_drafts(llm, outputs, params, f"speculative = plain, greedy, {language}", setting)
                )
            notes: dict[str, Any] = {"prompts": len(prompts), "prompt": PROMPT, "new": NEW} | options
            rows.append(
                figure(setting, f"MTP acceptance, {mode}, {language}", acceptance(outputs), "share", "higher", notes)
            )
            written = samples(llm, language, mode)
            shown = [{"seed": text.seed, "prompt": text.prompt, "text": text.text} for text in written]
            repeated = sum(repeated_share(output.token_ids) for output in outputs) / len(outputs)
            notes = notes | {"samples": shown, "sample_tokens": SAMPLE_TOKENS}
            rows.append(figure(setting, f"repeated 4-grams, {mode}, {language}", repeated, "share", "lower", notes))
            texts[mode] = [Text(None, i, o.token_ids, o.text or "") for i, o in enumerate(outputs)] + written
            rows += of_mixing(texts[mode], mode, language, setting)
        true = [document[PROMPT : PROMPT + NEW].tolist() for document in some]
        rows += of_verbatim_runs(llm, texts, true, train, language, setting)
    return rows


def same_without_drafts(
    llm: LLM, outputs: Sequence[RequestOutput], params: Sequence[SamplingParams], case: str, setting: Setting
) -> Row:
    """How many of the outputs the same model without speculation gives token by token."""
    plain = LLM.from_model(llm.model, llm.tokenizer, max_batch_size=len(outputs))
    others = plain.generate([output.prompt_token_ids for output in outputs], params)
    same = sum(output.token_ids == other.token_ids for output, other in zip(outputs, others))
    return figure(setting, case, same, f"of {len(outputs)} texts", "higher", {"texts": len(outputs), "new": NEW})


def samples(llm: LLM, language: str, mode: str) -> list[Text]:
    """Unedited, and not chosen: the tale greedily, or every beginning once, with seeds 1, 2, 3."""
    beginnings = BEGINNINGS[language] if mode == "sampled" else BEGINNINGS[language][:1]
    seeds = [None] if mode == "greedy" else [1 + i for i in range(len(beginnings))]
    options = SAMPLED if mode == "sampled" else {}
    params = [SamplingParams(max_tokens=SAMPLE_TOKENS, seed=seed, **options) for seed in seeds]
    outputs = llm.generate(list(beginnings), params)
    return [Text(*given, output.token_ids, output.text or "") for *given, output in zip(beginnings, seeds, outputs)]


def of_mixing(texts: Sequence[Text], mode: str, language: str, setting: Setting) -> list[Row]:
    """Share of the texts that leave their language: by script, and by function words where two share a script."""
    foreign = {text.text: letters for text in texts if (letters := foreign_letters(text.text, language))}
    notes: dict[str, Any] = {"texts": len(texts), "found": foreign}
    share = sum(text.text in foreign for text in texts) / len(texts)
    rows = [figure(setting, f"other script, {mode}, {language}", share, "share of texts", "lower", notes)]
    if language in FUNCTION_WORDS:
        led = [text.text for text in texts if leading_language(text.text) not in (language, None)]
        notes = {"texts": len(texts), "found": led}
        share = len(led) / len(texts)
        rows.append(
            figure(setting, f"other language leads, {mode}, {language}", share, "share of texts", "lower", notes)
        )
    return rows


def of_verbatim_runs(
    llm: LLM,
    texts: Mapping[str, Sequence[Text]],
    true: Sequence[Sequence[int]],
    train: TokenStore,
    language: str,
    setting: Setting,
) -> list[Row]:
    """The longest run of tokens that stands in the language's training text, for each way of writing."""
    print(f"{language}: verbatim runs", file=sys.stderr)
    groups = {mode: [text.token_ids for text in some] for mode, some in texts.items()} | {"true continuation": true}
    everything = [ids for some in groups.values() for ids in some]
    stream = train[language].tokens
    found = iter(longest_runs(everything, stream, breaks=(train.bos_id, train.eos_id)))
    rows = []
    for mode, some in groups.items():
        runs = [next(found) for _ in some]
        longest = max(runs, key=lambda run: run.length)
        lengths = sorted(run.length for run in runs)
        text = decoded(llm, longest, stream)
        notes = {
            "texts": len(runs),
            "median": median(lengths),
            "lengths": lengths,
            "median_characters": median(len(decoded(llm, run, stream)) for run in runs),
            "longest_characters": len(text),
            "longest_text": text,
        }
        case = f"longest verbatim run, {mode}, {language}"
        rows.append(figure(setting, case, longest.length, "tokens", "lower", notes))
    return rows


def decoded(llm: LLM, run: Run, stream: Any) -> str:
    """The text of a run, without the bytes at its ends that are no whole character."""
    assert llm.tokenizer is not None
    return llm.tokenizer.decode(stream[run.at : run.at + run.length].tolist()).strip("\ufffd")


def of_recall(llm: LLM, validation: TokenStore, grid: Grid, setting: Setting) -> list[Row]:
    """The needle map of each language: its mean as the figure, the grid in the notes."""
    rows = []
    for language, documents in validation.languages.items():
        cells = ask(llm, language, documents, grid)
        notes = {"lengths": grid.lengths, "depths": grid.depths, "trials": grid.trials, "accuracy": accuracy(cells)}
        found = summary(cells)
        right = found.pop("right")
        rows.append(figure(setting, f"needle accuracy, {language}", right, "share", "higher", notes | found))
    return rows


def figure(
    setting: Setting, case: str, value: float, unit: str, better: Literal["higher", "lower"], notes: dict[str, Any]
) -> Row:
    """A row of one exact figure, to four digits."""
    exact = float(f"{value:.4g}")
    return Row(case=case, ours=exact, ours_spread=0.0, unit=unit, better=better, notes=notes, **vars(setting))


def acceptance(outputs: Sequence[RequestOutput]) -> float:
    """Drafts that were the main model's own choice, as a part of all."""
    return sum(output.metrics.accepted for output in outputs) / sum(output.metrics.drafted for output in outputs)


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
