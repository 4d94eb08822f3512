"""Pictures and figures of the pages are computed, not typed: drawn again and counted again here."""

import importlib.util
import re

import pytest

from dsv3 import cost
from dsv3.cli.configs import load_config
from tests.docs.markdown import ROOT, table_with

LANGUAGES = ("en", "es", "zh")


@pytest.mark.parametrize("language", LANGUAGES)
def test_pictures_are_what_their_script_draws(language: str) -> None:
    script = ROOT / "docs/figures/token_path.py"
    spec = importlib.util.spec_from_file_location("token_path", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    drawn = module.draw(LANGUAGES.index(language))
    assert (script.parent / f"token_path_{language}.svg").read_text(encoding="utf-8") == drawn
    for path in re.findall(r"dsv3/[\w/]+\.py", drawn):
        assert (ROOT / path).is_file(), f"the picture names {path}"


def test_the_table_of_sizes_is_the_cost_model() -> None:
    header, *rows = table_with("README.md", "config_671B")
    configs = [load_config(name) for name in header[1:]]
    expected = {
        "parameters": [f"{cost.parameters(c) / 1e9:.2f} B" for c in configs],
        "activated per token": [f"{cost.activated_parameters(c) / 1e9:.2f} B" for c in configs],
        "weights in BF16": [decimal(cost.weight_bytes(c, "bf16")) for c in configs],
        "weights in FP8": [decimal(cost.weight_bytes(c, "fp8")) for c in configs],
        "latent cache per token, BF16": [f"{cost.cache_bytes_per_token(c):,} B" for c in configs],
        "the same with full keys and values": [f"{cost.uncompressed_cache_bytes_per_token(c):,} B" for c in configs],
    }
    assert {row[0]: row[1:] for row in rows[1:]} == expected


def decimal(n: int) -> str:
    return f"{n / 1e12:.2f} TB" if n >= 1e12 else f"{n / 1e9:.2f} GB"
