"""Write the figures of the embedded model's three pages and of its card from the measured files.

    python benchmarks/embedded_pages.py            rewrite the pages
    python benchmarks/embedded_pages.py --check    exit with 1 if a page is not what the files say

After another training: benchmarks/embedded_data.py, benchmarks/model_card.py, the scripts in docs/figures, this one. A
table, figure or list of samples stands between ``<!-- figures: NAME -->`` and ``<!-- end -->`` on lines of their own, a
number between the same marks within a line; everything outside is written by hand and has no number of the model's, but
it says what the numbers mean: read it again after a training. The words of the tables are in embedded_page_words.py.
"""

import argparse
import csv
import json
import math
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from common import RESULTS, ROOT
from embedded_page_words import LANGUAGES, WORDS
from embedded_runs import RUNS, comparisons

from dsv3 import ModelConfig, cost
from dsv3.config import TrainConfig

PAGES = {language: f"docs/embedded-model{end}.md" for language, end in zip(LANGUAGES, ("", "_ES", "_ZH"))}
CARD = "dsv3/assets/tiny/README.md"
WEIGHTS = ROOT / "dsv3/assets/tiny/model.safetensors"
CARD_RESULTS = RESULTS / "model_card.cpu2.json"
DATA = ROOT / "docs" / "data"
CONFIGS = ROOT / "configs"
MARKED = re.compile(r"(<!-- figures: (?P<name>[\w -]+) -->)(?P<line>\n?).*?(<!-- end -->)", re.DOTALL)

# What is not in the files: the prepared text (dsv3.train.corpus prints it) and the day of the training.
WORKS = {"en": 102, "es": 128, "zh": 49}
TRAIN_BYTES = {"en": 46400639, "es": 47335487, "zh": 48149218}
TRAIN_TOKENS = {"en": 13286177, "es": 13944972, "zh": 15018794}
VALIDATION_TARGETS = {"en": 147914, "es": 148873, "zh": 156359}  # tokens and ends of documents: all but BOS
RECALL_SHARE = 0.03  # dsv3.train.recall.add_recall
TRAINED_ON = "2026-11-25"
WINDOW = 600  # steps before an evaluation, over which the training loss beside it is averaged

NAMES = dict(zip(LANGUAGES, ("English", "Spanish", "Chinese")))
CHOICES = (
    "muon", "muon-lr-1.5e-3", "muon-lr-6e-3", "muon-decay-0.3", "batch-32768", "adamw-lr-1.5e-3", "adamw",
    "adamw-lr-6e-3", "vocab-4096", "vocab-12288", "deep", "wide", "two-dense", "few-wide-experts", "six-active",
    "eight-active",
)  # fmt: skip
SCHEDULES = ("half-constant", "falling", "falling-decay-1", "falling-lr-5e-3-decay-0.6")
MAX_VIO, ACCEPTANCE, AIM = 0.3, 0.5, 0.65
LAST = 5  # lines of a log that the balance figure's description averages

Json = dict[str, Any]


class Files:
    """What the pages are made of, read once."""

    @cached_property
    def rows(self) -> dict[str, Json]:
        return {row["case"]: row for row in _json(CARD_RESULTS)}

    @cached_property
    def runs(self) -> Json:
        return _json(RUNS)

    @cached_property
    def choices(self) -> dict[str, Json]:
        return {choice["name"]: choice for choice in _json(DATA / "embedded-choices.json")}

    @cached_property
    def log(self) -> list[dict[str, str]]:
        return _csv("train_tiny.csv")

    @cached_property
    def evaluations(self) -> list[dict[str, str]]:
        return _csv("train_tiny_eval.csv")

    @cached_property
    def curves(self) -> list[dict[str, str]]:
        return _csv("embedded-curves.csv")

    @cached_property
    def preset(self) -> TrainConfig:
        return TrainConfig.from_json(CONFIGS / "train_tiny.json")

    @cached_property
    def model(self) -> ModelConfig:
        return ModelConfig.from_json(CONFIGS / "config_tiny.json")

    def figure(self, case: str) -> float:
        return self.rows[case]["ours"]

    def by_language(self, case: str) -> list[float]:
        return [self.figure(f"{case}, {language}") for language in LANGUAGES]

    @property
    def blocks(self) -> list[str]:
        """The MoE blocks by the names that the card's rows give them: "layer 1" to "MTP 0"."""
        return [case.removeprefix("MaxVio, ") for case in self.rows if case.startswith("MaxVio, ")]

    @property
    def passes(self) -> float:
        """How often the run read the text: recall documents are RECALL_SHARE of every pass."""
        tokens = self.preset.total_steps * self.preset.batch_tokens
        return tokens * (1 - RECALL_SHARE) / sum(TRAIN_TOKENS.values())


def _json(path: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _csv(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def mean_bits(choice: Mapping[str, Any]) -> float:
    return statistics.fmean(choice["bits_per_byte"].values())


def signed(value: float, form: str) -> str:
    return format(value, "+" + form).replace("-", "−")


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = ["|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in (header, *lines)]
    return "\n".join([rows[0], "|" + "---|" * len(header), *rows[1:], ""])


@dataclass(frozen=True)
class Page:
    """One language's words around the figures of ``files``; every method that a marker names gives its content."""

    files: Files
    language: str

    def say(self, key: str, **values: object) -> str:
        return WORDS[key][LANGUAGES.index(self.language)].format(**values)

    def percent(self, share: float, digits: int = 0) -> str:
        return self._spaced(f"{share:.{digits}%}")

    def _spaced(self, text: str) -> str:
        return text.replace("%", " %") if self.language == "es" else text

    @property
    def languages(self) -> list[str]:
        return [self.say(NAMES[language]) for language in LANGUAGES]

    @property
    def header(self) -> list[str]:
        return ["", *self.languages]

    def join(self, parts: Iterable[str], mark: str = ",") -> str:
        return ({",": "、", ";": "；"}[mark] if self.language == "zh" else f"{mark} ").join(parts)

    def block(self, name: str) -> str:
        """ "layer 3" and "MTP 0" as the page says it."""
        kind, number = name.split()
        return self.say("layer", i=number) if kind == "layer" else "MTP"

    # ----------------------------------------------------------------------------------------- shape, choices, training

    def shape(self) -> str:
        tiny, big = self.files.model, ModelConfig.from_json(CONFIGS / "config_671B.json")

        def column(config: ModelConfig) -> list[str]:
            return [
                f"{config.n_layers}, {config.n_dense_layers}",
                f"{config.dim}",
                f"{config.n_heads}",
                f"{config.q_lora_rank}, {config.kv_lora_rank}",
                f"{config.n_routed_experts}, {config.n_activated_experts}",
                f"{config.n_expert_groups}, {config.n_limited_groups}",
                f"{config.moe_inter_dim}",
                f"{config.vocab_size}",
                f"{131072 if config is big else config.max_context}",  # the released model's, extended in two phases
                short(cost.parameters(config)),
                short(cost.activated_parameters(config)),
                short(cost.mtp_parameters(config)),
            ]

        titles = "layers,width,heads,latents,experts,groups,expert width,vocabulary,context".split(",")
        titles += ["parameters", "activated", "MTP parameters"]
        cells = zip(map(self.say, titles), column(tiny), column(big))
        return markdown(["", self.say("embedded model"), "DeepSeek-V3"], cells)

    def text(self) -> str:
        def held(name: str) -> list[str]:
            notes = [self.files.rows[f"bits per byte, {name}, {language}"]["notes"] for language in LANGUAGES]
            return [f"{note['bytes'] / 1e6:.2f} MB, {note['documents']}" for note in notes]

        lines = [
            [self.say("works"), *(f"{n}" for n in WORKS.values())],
            [self.say("text for training"), *(f"{n / 1e6:.1f} MB" for n in TRAIN_BYTES.values())],
            [self.say("tokens"), *(f"{n / 1e6:.1f}M" for n in TRAIN_TOKENS.values())],
            [self.say("text for validation"), *held("validation")],
            [self.say("verses"), *held("held-out verses")],
        ]
        return markdown(self.header, lines)

    def choices(self) -> str:
        return self._short_runs(CHOICES)

    def schedules(self) -> str:
        return self._short_runs(SCHEDULES)

    def _short_runs(self, names: Sequence[str]) -> str:
        """The first of them is what the others are compared with."""
        first = self.files.choices[names[0]]
        lines = []
        for name in names:
            choice = self.files.choices[name]
            train, model = choice["changes"]["train"], choice["changes"].get("model", {})
            batch = train.get("batch_tokens", choice["tokens"] // choice["steps"])
            said = {"steps": f"{choice['steps']:,}", "first_steps": f"{first['steps']:,}", "batch": f"{batch:,}"}
            title = self.say(name, **said, lr=train["lr"], weight_decay=train["weight_decay"], **model)
            bits = [f"{choice['bits_per_byte'][language]:.3f}" for language in LANGUAGES]
            mean = mean_bits(choice)
            change = "" if choice is first else self._spaced(signed(mean / mean_bits(first) - 1, ".1%"))
            speed = f"{choice['tokens_per_second'] / 1e6:.2f}M"
            lines.append([title, *bits, f"{mean:.3f}", change, speed, short(choice["activated"])])
        titles = map(self.say, ("mean", "to the first", "tokens per second", "activated parameters"))
        return markdown([self.say("run"), *self.languages, *titles], lines)

    def settings(self) -> str:
        preset = self.files.preset
        values = {
            "steps": f"{preset.total_steps:,}",
            "batch": f"{preset.batch_tokens:,}",
            "tokens": f"{preset.total_steps * preset.batch_tokens / 1e6:.1f}M",
            "passes": self.passes(),
            "seq_len": f"{preset.seq_len:,}",
            "share": self.percent(RECALL_SHARE),
            "freeze": self.percent(preset.bias_freeze_fraction),
            "decay": self.percent(preset.decay_fraction),
            "floor": self.percent(preset.min_lr_ratio),
            "seconds": self.seconds(),
            "date": TRAINED_ON,
            "speed": self.speed(),
        }
        titles = "steps,rows,recall documents,losses,load balancing,optimiser,learning rate,precision,time".split(",")
        lines = [(self.say(title), self.say(f"{title} of", **(vars(preset) | values))) for title in titles]
        return markdown(["", ""], lines)

    def seconds(self) -> str:
        return f"{self.files.runs['final']['run']['seconds']:.0f}"

    def passes(self) -> str:
        return f"{self.files.passes:.1f}"

    def speed(self) -> str:
        speeds = [float(row["tokens_per_second"]) for row in self.files.log]
        return f"{statistics.median(speeds) / 1e6:.1f}"

    def course(self) -> str:
        """Evaluation by evaluation: learning rate, bits per byte, and by how much the training loss is below."""
        lines = []
        for evaluation in self.files.evaluations:
            step = int(evaluation["step"])
            rate = next(row["lr"] for row in reversed(self.files.log) if int(row["step"]) <= step)
            bits = [f"{float(evaluation[f'bits_per_byte.{language}']):.3f}" for language in LANGUAGES]
            gaps = [signed(self.gap(evaluation, language), ".2f") for language in LANGUAGES]
            lines.append([f"{step:,}", f"{float(f'{float(rate):.2g}'):.5f}".rstrip("0"), *bits, *gaps])
        titles = [self.say(kind, language=name) for kind in ("bits", "gap") for name in self.languages]
        return markdown([self.say("step"), self.say("learning rate"), *titles], lines)

    def gap(self, evaluation: Mapping[str, str], language: str) -> float:
        """Nats per token on the validation text less the mean training loss of the steps before."""
        n_bytes = self.files.rows[f"bits per byte, validation, {language}"]["notes"]["bytes"]
        bits = float(evaluation[f"bits_per_byte.{language}"])
        step, column = int(evaluation["step"]), f"loss_by_language.{language}"
        losses = [float(row[column]) for row in self.files.log if step - WINDOW < int(row["step"]) <= step]
        return bits * math.log(2) * n_bytes / VALIDATION_TARGETS[language] - statistics.fmean(losses)

    def training_figure(self) -> str:
        first, last = self.files.evaluations[0], self.files.evaluations[-1]
        said = {"first": f"{int(first['step']):,}", "last": f"{int(last['step']):,}"}
        for language in LANGUAGES:
            said[language] = f"{float(first[f'bits_per_byte.{language}']):.3f}"
            said[f"{language}_last"] = f"{float(last[f'bits_per_byte.{language}']):.3f}"
        return picture(self.say("training figure", **said), "train_tiny.png")

    # ------------------------------------------------------------------------------------------- what the card measured

    def quality(self) -> str:
        bits = [("validation", "bits per byte, validation"), ("held-out verses", "bits per byte, held-out verses")]
        lines = [[self.say(title), *(f"{x:.3f}" for x in self.files.by_language(case))] for title, case in bits]
        agreement = map(self.percent, self.files.by_language("MTP agreement, validation"))
        return markdown(self.header, [*lines, [self.say("MTP agreement"), *agreement]])

    def writing(self) -> str:
        lines = [
            [self.say(f"{what}, {mode}"), *map(self.percent, self.files.by_language(f"{what}, {mode}"))]
            for mode in ("greedy", "sampled")
            for what in ("MTP acceptance", "repeated 4-grams")
        ]
        for what in ("other script", "other language leads"):
            for mode in ("greedy", "sampled"):
                cells = [self._texts(f"{what}, {mode}, {language}") for language in LANGUAGES]
                lines.append([self.say(f"{what}, {mode}"), *cells])
        same = [self._same(language) for language in LANGUAGES]
        lines.append([self.say("speculative"), *(self.say("of", n=n, all=of) for n, of in same)])
        return markdown(self.header, lines)

    def _texts(self, case: str) -> str:
        if case not in self.files.rows:
            return "–"
        texts = self.files.rows[case]["notes"]["texts"]
        return self.say("of", n=round(self.files.figure(case) * texts), all=texts)

    def _same(self, language: str) -> tuple[int, int]:
        row = self.files.rows[f"speculative = plain, greedy, {language}"]
        return round(row["ours"]), row["notes"]["texts"]

    def overlap(self) -> str:
        lines = []
        for mode in ("greedy", "sampled", "true continuation"):
            rows = [self.files.rows[f"longest verbatim run, {mode}, {language}"] for language in LANGUAGES]
            name = self.say(f"run, {mode}")
            tokens = [f"{row['ours']:.0f} ({row['notes']['median']:g})" for row in rows]
            letters = [f"{row['notes']['longest_characters']} ({row['notes']['median_characters']:g})" for row in rows]
            lines += [[self.say("in tokens", mode=name), *tokens], [self.say("in characters", mode=name), *letters]]
        return markdown(self.header, lines)

    def dense(self) -> str:
        lines = []
        for one in comparisons(self.files.runs):
            name = self.say(NAMES[one.language])
            cells = (self._spaced(cell.replace("-", "−")) for cell in one.cells())
            lines.append([self.say(f"text, {one.text}", language=name), *cells])
        runs = [self.files.runs[model]["run"] for model in ("final", "dense")]
        sizes = [f"{short(run['parameters'])}; {short(run['activated'])}" for run in runs]
        lines.append([self.say("dense parameters"), *sizes, "", ""])
        lines.append([self.say("training seconds"), *(f"{run['seconds']:.0f}" for run in runs), "", ""])
        header = map(self.say, ("of what", "embedded model", "dense model", "difference"))
        return markdown([*header, ""], lines)

    def balance(self) -> str:
        blocks = self.files.blocks
        lines = [
            [self.say(what), *(f"{self.files.figure(f'{what}, {block}'):.2f}" for block in blocks)]
            for what in ("MaxVio", "language distance")
        ]
        return markdown(["", *map(self.block, blocks)], lines)

    def experts_figure(self) -> str:
        owned = []
        for block in self.files.blocks:
            shares = self.files.rows[f"language distance, {block}"]["notes"]["language_shares_by_expert"].values()
            n, of = sum(max(parts) > 0.5 for parts in zip(*shares)), self.files.model.n_routed_experts
            owned.append(self.say("owned", block=self.block(block), n=n, all=of))
        text = self.say("experts figure", counts=self.join(owned, ";"))
        return picture(text, "experts_by_language_tiny.png")

    def needles(self) -> str:
        rows = [self.files.rows[f"needle accuracy, {language}"] for language in LANGUAGES]
        notes = [row["notes"] for row in rows]

        def shares(title: str, values: Iterable[float], digits: int = 0) -> list[str]:
            return [self.say(title), *(self.percent(value, digits) for value in values)]

        lines = [
            [self.say("needles"), *(f"{note['needles']}" for note in notes)],
            shares("right", (row["ours"] for row in rows)),
            shares("another holder's", (note["another_holders"] for note in notes)),
            shares("lowest cell", (min(map(min, note["accuracy"])) for note in notes)),
            shares("any stated", (note["any_stated"] for note in notes)),
            shares("chance", (note["chance"] for note in notes), 1),
            *(shares(f"kind, {kind}", (note["by_kind"][kind] for note in notes)) for kind in notes[0]["by_kind"]),
        ]
        return markdown(self.header, lines)

    def needle_figure(self) -> str:
        means = zip(self.languages, self.files.by_language("needle accuracy"))
        text = self.say("needle figure", means=self.join(f"{name} {self.percent(mean)}" for name, mean in means))
        return picture(text, "needle_tiny.png")

    # ------------------------------------------------------------------------------------------------ balancing and MTP

    def claim(self) -> str:
        return self._compared((method, f"balance-{method}-") for method in ("bias", "auxiliary", "nothing"))

    def module(self) -> str:
        return self._compared((("MTP on", "balance-bias-"), ("MTP off", "mtp-off-")))

    def _compared(self, methods: Iterable[tuple[str, str]]) -> str:
        lines = []
        for method, prefix in methods:
            for name, choice in self.files.choices.items():
                if name.startswith(prefix):
                    seed = name.removeprefix(prefix)
                    title = self.say("seed", method=self._method(method), seed=seed)
                    bits = [f"{choice['bits_per_byte'][language]:.3f}" for language in LANGUAGES]
                    violations = choice["max_vio"].values()
                    balance = [f"{statistics.fmean(violations):.2f}", f"{max(violations):.2f}"]
                    speed = f"{choice['tokens_per_second'] / 1e6:.2f}M"
                    lines.append([title, *bits, f"{mean_bits(choice):.3f}", *balance, speed])
        titles = map(self.say, ("mean", "mean MaxVio", "worst MaxVio", "tokens per second"))
        return markdown([self.say("run"), *self.languages, *titles], lines)

    def _method(self, method: str) -> str:
        """A method with the weight of its balance loss: the run's own, or the preset's, which "bias" keeps."""
        run = self.files.choices.get(f"balance-{method}-0", {"changes": {"train": {}}})
        return self.say(method, weight=run["changes"]["train"].get("balance_weight", self.files.preset.balance_weight))

    def balance_figure(self) -> str:
        ends = []
        for method in ("bias", "auxiliary", "nothing"):
            prefix = f"balance-{method}-"
            runs = [
                [row for row in self.files.curves if row["run"] == name][-LAST:]
                for name in self.files.choices
                if name.startswith(prefix)
            ]
            loss = statistics.fmean(float(row["loss"]) for rows in runs for row in rows)
            violation = statistics.fmean(
                float(value) for rows in runs for row in rows for key, value in row.items() if key.startswith("max_vio")
            )
            said = {"loss": f"{loss:.2f}", "maxvio": f"{violation:.2f}"}
            ends.append(self.say("balance end", method=self._method(method), **said))
        return picture(self.say("balance figure", n=LAST, ends=self.join(ends, ";")), "balance_tiny.png")

    # ------------------------------------------------------------------------------------------------------- thresholds

    def thresholds(self) -> str:
        highest, block = max((self.files.figure(f"MaxVio, {block}"), block) for block in self.files.blocks)
        lines = [
            [
                self.say("threshold MaxVio", limit=MAX_VIO),
                self.say("highest", value=f"{highest:.2f}", block=self.block(block)),
                signed(highest - MAX_VIO, ".2f"),
                self._verdict([] if highest < MAX_VIO else [""]),
            ]
        ]
        for key, limit in (("threshold acceptance", ACCEPTANCE), ("aim acceptance", AIM)):
            for mode in ("greedy", "sampled"):
                case = f"MTP acceptance, {mode}"
                shares = self.files.by_language(case)
                low = [language for language, share in zip(LANGUAGES, shares) if share < limit]
                margin = self.say("points", value=signed(100 * (min(shares) - limit), ".1f"))
                title = self.say(key, mode=self.say(case), limit=self.percent(limit))
                lines.append([title, self._three(self.percent(s, 1) for s in shares), margin, self._verdict(low)])
        against = [one for one in comparisons(self.files.runs) if one.text == "validation"]
        relative = [one.relative for one in against]
        worse = [one.language for one in against if one.relative >= 0]
        cells = self._three(self._spaced(signed(value, ".1%")) for value in relative)
        least = self._spaced(signed(max(relative), ".1%"))
        lines.append([self.say("threshold dense"), cells, least, self._verdict(worse)])
        same = [self._same(language) for language in LANGUAGES]
        n, of = (sum(column) for column in zip(*same))
        unlike = [language for language, (equal, texts) in zip(LANGUAGES, same) if equal < texts]
        found = self.say("of", n=n, all=of)
        missing = signed(n - of, "d") if n < of else "0"
        lines.append([self.say("threshold speculative"), found, missing, self._verdict(unlike)])
        return markdown([*map(self.say, ("threshold", "measured", "margin", "verdict"))], lines)

    def _three(self, values: Iterable[str]) -> str:
        return self.join(f"{name} {value}" for name, value in zip(self.languages, values))

    def _verdict(self, missing: Sequence[str]) -> str:
        """``missing``: the languages that miss it; "" where the threshold is not one of languages."""
        if not missing:
            return self.say("met")
        if len(missing) == len(LANGUAGES) or missing == [""]:
            return self.say("missed")
        return self.say("missed in", languages=self.join(self.say(NAMES[language]) for language in missing))

    # ---------------------------------------------------------------------------------------------------------- samples

    def samples(self) -> str:
        parts = []
        for language in LANGUAGES:
            for mode in ("greedy", "sampled"):
                notes = self.files.rows[f"repeated 4-grams, {mode}, {language}"]["notes"]
                for sample in notes["samples"]:
                    said = {key: notes[key] for key in ("temperature", "top_p") if key in notes}
                    name = self.say(NAMES[language]).capitalize()
                    title = self.say(f"{mode} sample", language=name, seed=sample["seed"], **said)
                    parts.append(f"{title}\n\n```text\n{sample['prompt']}{sample['text']}\n```\n")
        return "\n".join(parts)

    # ------------------------------------------------------------------------------------------------ numbers in a line

    def window(self) -> str:
        return str(WINDOW)

    def short_tokens(self) -> str:
        return f"{self.files.choices[CHOICES[0]]['tokens'] / 1e6:.1f}M"

    def seed_spread(self) -> str:
        """The largest difference that the seed alone makes to the mean of bits per byte."""
        pairs = [[self.files.choices[f"{name}-{seed}"] for seed in (0, 1)] for name in ("balance-bias", "mtp-off")]
        return self.percent(max(abs(mean_bits(one) / mean_bits(other) - 1) for one, other in pairs), 1)

    def recall_share(self) -> str:
        return self.percent(RECALL_SHARE)

    def temperature(self) -> str:
        return str(self._sampling["temperature"])

    def top_p(self) -> str:
        return str(self._sampling["top_p"])

    @property
    def _sampling(self) -> Json:
        return self.files.rows["MTP acceptance, sampled, en"]["notes"]

    def megabytes(self) -> str:
        return f"{WEIGHTS.stat().st_size / 1e6:.0f}"

    def measured_on(self) -> str:
        return self.files.rows["MaxVio, layer 1"]["date"]

    def sample_tokens(self) -> str:
        return str(self.files.rows["repeated 4-grams, greedy, en"]["notes"]["sample_tokens"])

    def total_parameters(self) -> str:
        return short(cost.parameters(self.files.model) + cost.mtp_parameters(self.files.model))

    def main_parameters(self) -> str:
        return short(cost.parameters(self.files.model))

    def activated(self) -> str:
        return short(cost.activated_parameters(self.files.model))

    def text_tokens(self) -> str:
        return f"{sum(TRAIN_TOKENS.values()) / 1e6:.2f}M"

    def card(self) -> str:
        """The card's one table, in three languages at once."""
        pages = [Page(self.files, language) for language in LANGUAGES]

        def title(key: str) -> str:
            return " · ".join(page.say(key) for page in pages)

        bits = [("validation", "bits per byte, validation"), ("held-out verses", "bits per byte, held-out verses")]
        lines = [[title(key), *(f"{x:.3f}" for x in self.files.by_language(case))] for key, case in bits]
        shares = {
            "MTP agreement": "MTP agreement, validation",
            "MTP acceptance, sampled": "MTP acceptance, sampled",
            "needle, card": "needle accuracy",
        }
        for key, case in shares.items():
            lines.append([title(key), *(f"{x:.0%}" for x in self.files.by_language(case))])
        return markdown(["", *LANGUAGES], lines)


BLOCKS = {
    name: name.replace(" ", "_")
    for name in "shape,text,choices,schedules,settings,training figure,course,quality,dense,writing,overlap,balance,"
    "experts figure,needles,needle figure,claim,balance figure,module,thresholds,samples".split(",")
}
"""Names of the markers that every page has, and the method of each."""
VALUES = {
    name: name.replace(" ", "_")
    for name in "seconds,passes,speed,measured on,sample tokens,total parameters,main parameters,activated,text tokens,"
    "window,megabytes,short tokens,seed spread,recall share,temperature,top p,card".split(",")
}
"""Those that a page may have."""


def short(n: float) -> str:
    """22573824 as 22.6M, 671000000000 as 671B."""
    if n >= 1e9:
        return f"{n / 1e9:.0f}B" if n >= 1e11 else f"{n / 1e9:.1f}B"
    return f"{n / 1e6:.1f}M"


def picture(text: str, name: str) -> str:
    return f"![{text}](figures/{name})\n"


def render(text: str, page: Page, required: Iterable[str] = ()) -> str:
    """``text`` with everything between markers made anew. Raises ValueError for a name that nothing is known of, or a
    required one that is not there."""
    known = BLOCKS | VALUES
    shown = {match["name"] for match in MARKED.finditer(text)}
    if unknown := sorted(shown - set(known)):
        raise ValueError(f"nothing is known of {', '.join(unknown)}; there are {', '.join(known)}")
    if absent := [name for name in required if name not in shown]:
        raise ValueError(f"no marker for {', '.join(absent)}: add <!-- figures: {absent[0]} --> and <!-- end -->")

    def fill(match: re.Match[str]) -> str:
        return match[1] + match["line"] + getattr(page, known[match["name"]])() + match[4]

    return MARKED.sub(fill, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 if a page is stale")
    check = parser.parse_args().check
    files, stale = Files(), []
    for language, name in [*PAGES.items(), ("en", CARD)]:
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        new = render(old, Page(files, language), required=BLOCKS if name != CARD else ["card"])
        if new != old:
            stale.append(name)
            if not check:
                path.write_text(new, encoding="utf-8")
    if check and stale:
        print(f"{', '.join(stale)}: stale; run python benchmarks/embedded_pages.py", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
