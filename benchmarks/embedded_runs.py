"""The embedded model beside a dense one of equal activated size: figures of their training runs' last evaluations.

    python benchmarks/embedded_runs.py                                    the table, from docs/data/embedded-runs.json
    python benchmarks/embedded_runs.py final=RUN/log.jsonl dense=RUN/log.jsonl      make that file from the runs' logs

The dense model's weights are no part of the package, so its figures cannot be computed again; to compare like with
like both models' are the trainer's own: BF16 on a GPU, the whole validation text and the held-out verses. The file
holds, for "final" (the embedded model) and "dense", the last evaluations by text, each as ``evaluate`` gives it:

    {"final": {"step": 7105, "validation": {"bits_per_byte": {"en": 1.2, ...}, ...}, "heldout": {...}}, "dense": ...}

In a log these are the records of kind "eval" with ``final`` true; "text" says of which text, "validation" if absent.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ROOT, replace_text

from dsv3.errors import ConfigError, Dsv3Error
from dsv3.train.log import read_log

RUNS = ROOT / "docs" / "data" / "embedded-runs.json"
MODELS = ("final", "dense")
TEXTS = {"validation": "validation text", "heldout": "held-out verses"}
LANGUAGES = ("en", "es", "zh")


@dataclass(frozen=True)
class Comparison:
    """Bits per byte of both models on one text in one language."""

    text: str
    language: str
    embedded: float
    dense: float

    @property
    def difference(self) -> float:
        """Embedded less dense: negative where the experts predict the text better."""
        return self.embedded - self.dense

    @property
    def relative(self) -> float:
        """The difference as a part of the dense model's."""
        return self.difference / self.dense

    def cells(self) -> tuple[str, str, str, str]:
        """Embedded, dense, difference, and this as a part of the dense model's, as the pages print them."""
        return f"{self.embedded:.3f}", f"{self.dense:.3f}", f"{self.difference:+.3f}", f"{self.relative:+.1%}"


def main(arguments: Sequence[str]) -> int:
    try:
        if arguments:
            logs = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
            if sorted(logs) != sorted(MODELS) or len(logs) != len(arguments):
                raise ConfigError(f"expected {' and '.join(f'{model}=LOG' for model in MODELS)}, or nothing")
            save({model: last_evaluations(read_log(logs[model]), logs[model]) for model in MODELS}, RUNS)
        print(markdown(comparisons(json.loads(RUNS.read_text(encoding="utf-8")))))
    except (Dsv3Error, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def last_evaluations(records: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    """What a run's log says of its end: the step, and one evaluation for each text."""
    last = [record for record in records if record["kind"] == "eval" and record.get("final")]
    if not last:
        raise ConfigError(f"{where} has no final evaluation: the run has not come to its end")
    unlike = ("kind", "step", "final", "text")
    found = {
        record.get("text", "validation"): {key: value for key, value in record.items() if key not in unlike}
        for record in last
    }
    return {"step": last[-1]["step"]} | found


def comparisons(runs: Mapping[str, Mapping[str, Any]]) -> list[Comparison]:
    """Text by text and language by language, of the texts that both models were evaluated on."""
    embedded, dense = (runs[model] for model in MODELS)
    both = [text for text in TEXTS if text in embedded and text in dense]
    return [
        Comparison(text, language, *(run[text]["bits_per_byte"][language] for run in (embedded, dense)))
        for text in both
        for language in LANGUAGES
    ]


def markdown(found: Sequence[Comparison]) -> str:
    """A table with one row for each text and language."""
    lines = ["| bits per byte | | embedded model | dense model | difference | |", "|---|---|---|---|---|---|"]
    lines += ["| " + " | ".join((TEXTS[one.text], one.language, *one.cells())) + " |" for one in found]
    return "\n".join(lines)


def save(runs: Mapping[str, Any], path: Path) -> None:
    """Writes the file whole or not at all."""
    replace_text(path, json.dumps(runs, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
