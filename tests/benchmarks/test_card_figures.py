"""The model card's figures are drawn from its results alone."""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.checkpoints import ROOT


def test_both_figures_are_drawn_and_described(tmp_path: Path) -> None:
    grid = {"lengths": [128, 256], "depths": [0, 1], "accuracy": [[0.5, 0.25], [1, 0.75]], "chance": 0.01}
    shares = {"en": [0.8, 0.1], "es": [0.1, 0.2], "zh": [0.1, 0.7]}
    notes = {f"needle accuracy, {language}": grid for language in shares}
    notes |= {f"language distance, {block}": {"language_shares_by_expert": shares} for block in ("layer 1", "MTP 0")}
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{"case": case, "notes": of} for case, of in notes.items()]), encoding="utf-8")
    script = ROOT / "docs" / "figures" / "embedded_model.py"
    subprocess.run([sys.executable, script, "--results", results, "--out", tmp_path], check=True)
    for name, said in (
        ("needle_tiny.png", "Chinese: mean 62%, lowest 25% at 256 tokens and depth 0, chance 0.01."),
        ("experts_by_language_tiny.png", "layer 1: 1 English, 0 Spanish, 1 Chinese"),
    ):
        with Image.open(tmp_path / name) as image:
            assert said in image.info["Description"]
