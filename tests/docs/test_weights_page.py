"""docs/weights.md lists what the package's own tables list: every key of config.json, every tensor, every shape."""

import dataclasses
import json
import re

import pytest

from dsv3 import config as configuration
from dsv3.config import ModelConfig
from dsv3.weights import names
from tests.docs.markdown import ROOT, plain, table_with

PAGE = "docs/weights.md"
LAYER_AND_EXPERT = ((0, 0), (1, 0), (1, 3))  # layer 0 of the fixture is dense, layer 1 has experts


@pytest.fixture
def v3() -> ModelConfig:
    """Every size different, so that no two shapes of the page can be mistaken for each other."""
    return ModelConfig(
        vocab_size=11,
        dim=13,
        inter_dim=17,
        moe_inter_dim=17,
        n_layers=2,
        n_dense_layers=1,
        n_heads=3,
        n_routed_experts=5,
        n_shared_experts=1,
        n_activated_experts=2,
        score_func="sigmoid",
        q_lora_rank=23,
        kv_lora_rank=30,
        qk_nope_head_dim=32,
        qk_rope_head_dim=6,
        v_head_dim=37,
        n_mtp_layers=1,
    )


def evaluated(shape: str, c: ModelConfig) -> tuple[int, ...]:
    """``H(N+R), D`` in numbers: sums and products of the shape letters."""
    letters = {"V": c.vocab_size, "D": c.dim, "F": c.inter_dim, "H": c.n_heads, "E": c.n_routed_experts}
    letters |= {"Q": c.q_lora_rank, "C": c.kv_lora_rank}
    letters |= {"N": c.qk_nope_head_dim, "R": c.qk_rope_head_dim, "P": c.v_head_dim}
    product = re.sub(r"(?<=[A-Z\d])(?=[A-Z(])", "*", shape)
    return tuple(eval(side, {}, letters) for side in product.split(","))


def test_every_key_of_hugging_face_is_listed_with_the_value_of_v3() -> None:
    rows = table_with(PAGE, "Hugging Face key")[1:]
    listed = {plain(ours): plain(theirs) for theirs, ours, *_ in rows}
    assert listed == configuration._HF_KEYS | {"q_lora_rank": "q_lora_rank", "score_func": "scoring_func"}

    released = json.loads((ROOT / "configs/config_671B.json").read_text(encoding="utf-8"))
    values = {plain(ours): value for _, ours, value, _ in rows}
    shared = released.keys() & values.keys()
    assert {key: str(released[key]) for key in shared} == {key: values[key] for key in shared}


def test_every_tensor_is_listed(v3: ModelConfig) -> None:
    specs = {spec.name: spec for c in (v3, dataclasses.replace(v3, q_lora_rank=0)) for spec in names.specs(c)}
    listed: set[str] = set()
    for released, ours, shape, mark in table_with(PAGE, "FP8")[1:]:
        for layer, expert in LAYER_AND_EXPERT:
            name, hf = (plain(cell).replace("{i}", str(layer)).replace("{j}", str(expert)) for cell in (ours, released))
            if name in specs:
                found = specs[name]
                assert (found.hf, found.shape, found.fp8) == (hf, evaluated(shape, v3), mark == "●"), ours
                listed.add(re.sub(r"(?<=\.)\d+(?=\.)", "#", name))
        assert re.sub(r"\{\w\}", "#", plain(ours)) in listed, f"the package has no {ours}"
    main = {name for name in specs if not name.startswith("mtp.")}
    assert {re.sub(r"(?<=\.)\d+(?=\.)", "#", name) for name in main} == listed


def test_every_tensor_that_an_mtp_layer_adds_is_listed(v3: ModelConfig) -> None:
    deep = dataclasses.replace(v3, n_layers=61)
    specs = {spec.name: spec for spec in names.specs(deep)}
    added = {name for name in specs if name.startswith("mtp.0.") and name.replace("mtp.0.", "layers.60.") not in specs}
    copies = names.mtp_copies(deep)
    rows = table_with(PAGE, "role")[1:]
    for released, ours, shape, _ in rows:
        name = plain(ours)
        assert names.to_hf(name, 61) == plain(released)
        assert specs[copies.get(name, name)].shape == evaluated(shape, deep)
    assert {plain(ours) for _, ours, *_ in rows} == added | set(copies)
