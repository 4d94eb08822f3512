"""The probe: who hears what, for how long, and what listening costs when nobody does."""

import copy
import pickle

import pytest
import torch
from torch import nn

from dsv3.errors import ConfigError
from dsv3.model.transformer import Transformer
from dsv3.probe import Tap, capture, taps
from tests.conftest import SmallConfig
from tests.model_helpers import make_model

TOKENS = torch.arange(6).view(1, 6)


@pytest.fixture
def model(small_config: SmallConfig) -> Transformer:
    return make_model(small_config("v3"))


@pytest.mark.parametrize("pattern", ["scores", "ate.scores_TE"])  # a suffix begins at a dot
def test_a_name_that_nothing_has(model: Transformer, pattern: str) -> None:
    with pytest.raises(ConfigError, match=f"called {pattern}; there are .*scores_TE"), capture(model, pattern):
        pass
    assert listeners(model) == 0


def listeners(model: nn.Module) -> int:
    return sum(len(tap.listeners) for _, tap in taps(model))


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["layers.1.ffn.gate.scores_TE"], {"layers.1.ffn.gate.scores_TE"}),
        (["gate.scores_TE"], {f"{x}.ffn.gate.scores_TE" for x in ("layers.1", "layers.2")}),
        (["layers.[0-1].h"], {"layers.0.h", "layers.1.h"}),
        (["layers.2.attn.*_pe", "layers.0.h"], {"layers.2.attn.q_pe", "layers.2.attn.k_pe", "layers.0.h"}),
        (["2.ffn.routed*"], {"layers.2.ffn.routed_TD"}),
    ],
)
def test_patterns(model: Transformer, patterns: list[str], expected: set[str]) -> None:
    with capture(model, *patterns) as records:
        model(TOKENS)
    assert set(records) == expected
    assert all(len(tensors) == 1 for tensors in records.values())


def test_no_pattern_records_everything(model: Transformer) -> None:
    with capture(model) as records:
        model(TOKENS)
    layer = {name.removeprefix("layers.2.") for name in records if name.startswith("layers.2.")}
    gate = {f"ffn.gate.{x}" for x in ("logits_TE", "scores_TE", "weights_TK", "indices_TK")}
    assert layer == gate | {"ffn.routed_TD", "ffn.shared_TD", "h"} | {
        f"attn.{x}" for x in ("q_nope", "q_pe", "c_kv", "k_pe")
    }
    assert records["layers.2.ffn.gate.indices_TK"][0].shape == (6, 4)


def test_one_record_for_each_run_in_order(model: Transformer) -> None:
    with capture(model, "layers.0.h") as records:
        model(TOKENS)
        model(TOKENS.flip(1))
    first, second = records["layers.0.h"]
    with capture(model, "layers.0.h") as again:
        model(TOKENS.flip(1))
    assert torch.equal(second, again["layers.0.h"][0])
    assert not torch.equal(first, second)


def test_blocks_nest_and_end_in_any_order(model: Transformer) -> None:
    with capture(model, "layers.0.h") as outer:
        model(TOKENS)
        with capture(model, "layers.*.h") as inner:
            model(TOKENS)
        model(TOKENS)
    assert len(outer["layers.0.h"]) == 3
    assert {name: len(tensors) for name, tensors in inner.items()} == {f"layers.{i}.h": 1 for i in range(3)}
    a, b = capture(model, "layers.0.h"), capture(model, "layers.0.h")
    a.__enter__()
    second = b.__enter__()
    a.__exit__(None, None, None)
    model(TOKENS)
    b.__exit__(None, None, None)
    assert len(second["layers.0.h"]) == 1
    assert listeners(model) == 0


def test_records_are_cut_from_the_graph_unless_asked(model: Transformer) -> None:
    with capture(model, "layers.0.h") as cut, capture(model, "layers.0.h", detach=False) as kept:
        model(TOKENS)
    assert not cut["layers.0.h"][0].requires_grad
    kept["layers.0.h"][0].square().sum().backward()
    gradient = model.embed.weight.grad
    assert gradient is not None
    assert gradient.norm() > 0


def test_nobody_listens_after_the_block_nor_after_an_exception(model: Transformer) -> None:
    with capture(model) as records:
        model(TOKENS)
    count = len(records["layers.0.h"])
    with pytest.raises(IndexError), capture(model):
        model(TOKENS + model.config.vocab_size)
    assert listeners(model) == 0
    model(TOKENS)
    assert len(records["layers.0.h"]) == count


def test_two_models_do_not_hear_each_other(model: Transformer) -> None:
    other = make_model(model.config)
    with capture(model, "h") as records, capture(other, "h") as others:
        other(TOKENS)
        assert not records
        model(TOKENS)
    assert all(len(others[f"layers.{i}.h"]) == 1 for i in range(3))


def test_copies_do_not_inherit_listeners(model: Transformer) -> None:
    with capture(model, "h") as records:
        twin = copy.deepcopy(model)
        sent = pickle.loads(pickle.dumps(model.layers[0].tap))
        twin(TOKENS)
        assert not records
    assert listeners(twin) == 0
    assert isinstance(sent, Tap)


def test_listening_changes_no_number(model: Transformer) -> None:
    quiet = model(TOKENS)
    with capture(model):
        assert torch.equal(model(TOKENS), quiet)


def test_a_silent_tap_does_not_touch_the_tensor() -> None:
    class Untouchable:
        def __getattribute__(self, name: str) -> object:
            raise AssertionError(f"the tensor's {name} was read")

    Tap("anything")("anything", Untouchable())  # type: ignore[arg-type]


def test_a_module_without_a_name_records_bare_names(model: Transformer) -> None:
    with capture(model.layers[1].ffn.gate, "scores_TE") as records:
        model(TOKENS)
    assert list(records) == ["scores_TE"]


def test_a_list_of_names_is_refused() -> None:
    with pytest.raises(ConfigError, match="argument of its own"), capture(nn.Module(), ["gate.indices_TK"]):  # type: ignore[arg-type]
        pass
