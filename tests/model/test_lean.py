"""The flat decoding step equals the layers that it restates, and steps aside where it must."""

import copy

import pytest
import torch

from dsv3.config import ModelConfig
from dsv3.layers.cache import AttnContext, LatentCache
from dsv3.model.lean import MAX_TOKENS, LeanStep
from dsv3.model.transformer import Transformer
from dsv3.probe import capture
from tests.conftest import SmallConfig
from tests.model_helpers import assert_close, make_model


def prefilled(model: Transformer, lengths: list[int]) -> tuple[LatentCache, list[list[int]]]:
    """A cache that holds ``lengths`` random tokens of each sequence, in pages that lie anywhere."""
    cache = LatentCache(model.config, n_pages=40, page_size=4, dtype=torch.float32)
    order = torch.randperm(40).tolist()
    pages = [[order.pop() for _ in range(8)] for _ in lengths]
    ctx = AttnContext.build(cache, pages, [0] * len(lengths), lengths)
    tokens_T = torch.randint(model.config.vocab_size, (sum(lengths),))
    h_TD = model.hidden(tokens_T, ctx)
    for k in range(len(model.mtp)):
        model.predict_next(k, h_TD, tokens_T, ctx)
    return cache, pages


@torch.inference_mode()
@pytest.mark.parametrize(
    ("lengths", "q_lens"),
    [([7], [1]), ([7], [3]), ([4, 9, 1], [1, 1, 1]), ([4, 4], [1, 1]), ([5, 8, 3, 6], [1, 1, 2, 5]), ([3, 9], [2, 2])],
)
def test_equals_the_layers(any_small_config: ModelConfig, lengths: list[int], q_lens: list[int]) -> None:
    model = make_model(any_small_config)
    cache, pages = prefilled(model, lengths)
    lean = LeanStep(model)
    ctx = AttnContext.build(cache, pages, lengths, q_lens)
    assert lean.fits(ctx)
    tokens_T = torch.randint(model.config.vocab_size, (sum(q_lens),))
    expected, latents = model.hidden(tokens_T, ctx), cache.storage.clone()
    cache.storage[:, ctx.slots_T] = float("nan")  # it must write its own latents, not find the layers'
    h_TD = lean.hidden(tokens_T, ctx)
    assert_close(h_TD, expected)
    assert_close(lean.logits(h_TD), model.logits(h_TD))
    n_layers = model.config.n_layers
    assert_close(cache.storage[:n_layers], latents[:n_layers])
    for k in range(len(model.mtp)):
        expected_TD = model.predict_next(k, h_TD, tokens_T, ctx)
        cache.data[n_layers + k][ctx.slots_T] = float("nan")
        assert_close(lean.predict_next(k, h_TD, tokens_T, ctx), expected_TD)


@torch.inference_mode()
def test_without_shared_experts(small_config: SmallConfig) -> None:
    model = make_model(small_config("v3", n_shared_experts=0))
    cache, pages = prefilled(model, [6])
    ctx = AttnContext.build(cache, pages, [6], [1])
    tokens_T = torch.tensor([3])
    assert_close(LeanStep(model).hidden(tokens_T, ctx), model.hidden(tokens_T, ctx))


@torch.inference_mode()
def test_sees_weights_changed_in_place_and_keeps_the_model_whole(small_config: SmallConfig) -> None:
    model = make_model(small_config("v3"))
    before = copy.deepcopy(model.state_dict())
    lean = LeanStep(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    cache, pages = prefilled(model, [6])
    ctx = AttnContext.build(cache, pages, [6], [1])
    tokens_T = torch.tensor([3])
    old = lean.hidden(tokens_T, ctx)
    for parameter in model.parameters():
        parameter.mul_(1.25)
    new = lean.hidden(tokens_T, ctx)
    assert_close(new, model.hidden(tokens_T, ctx))
    assert (new - old).norm() > 0.01 * old.norm()


@torch.inference_mode()
def test_steps_aside(small_config: SmallConfig) -> None:
    model = make_model(small_config("v3"))
    lean = LeanStep(model)
    cache = LatentCache(model.config, n_pages=40, page_size=4, dtype=torch.float32)
    pages = [list(range(40))]
    ctx = AttnContext.build(cache, pages, [0], [1])
    assert lean.fits(ctx)
    assert not lean.fits(AttnContext.build(cache, pages, [0], [MAX_TOKENS + 1]))
    with capture(model, "attn.c_kv"):
        assert not lean.fits(ctx)
    assert lean.fits(ctx)
    lean.expand_above = 0
    assert not lean.fits(ctx)
    lean.expand_above = float("inf")
    model.to(torch.float32).double()
    assert not lean.fits(ctx)


@torch.inference_mode()
def test_the_gates_can_be_listened_to(small_config: SmallConfig) -> None:
    model = make_model(small_config("v3"))
    lean = LeanStep(model)
    cache, pages = prefilled(model, [6])
    ctx = AttnContext.build(cache, pages, [6], [2])
    with capture(model, "gate.indices_TK") as records:
        assert lean.fits(ctx)
        lean.hidden(torch.tensor([3, 4]), ctx)
    n_moe = model.config.n_layers - model.config.n_dense_layers
    assert [len(found) for found in records.values()] == [1] * n_moe


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_is_for_fp32(small_config: SmallConfig, dtype: torch.dtype) -> None:
    config = small_config("v3")
    assert LeanStep.supports(Transformer(config, dtype=torch.float32))
    assert not LeanStep.supports(Transformer(config, dtype=dtype))


@torch.no_grad()
def test_two_plans_of_one_model_share_its_weights(small_config: SmallConfig) -> None:
    model = make_model(small_config("v3"))
    first, second = LeanStep(model), LeanStep(model)
    cache, pages = prefilled(model, [6])
    ctx = AttnContext.build(cache, pages, [6], [1])
    tokens_T = torch.tensor([3])
    for parameter in model.parameters():
        parameter.mul_(1.25)
    for lean in (first, second):
        assert lean.fits(ctx)
        assert_close(lean.hidden(tokens_T, ctx), model.hidden(tokens_T, ctx))


def test_a_model_planned_in_inference_mode_can_still_be_trained(small_config: SmallConfig) -> None:
    model = make_model(small_config("v3")).requires_grad_()
    with torch.inference_mode():
        LeanStep(model)
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    assert model.layers[0].attn.wkv_a.weight.grad is not None


@torch.no_grad()
def test_a_model_that_was_cast_to_and_fro_goes_the_ordinary_way(small_config: SmallConfig) -> None:
    model = make_model(small_config("v3"))
    lean = LeanStep(model)
    assert lean.fits_rows(1)
    model.to(torch.bfloat16)
    assert not lean.fits_rows(1)
    cache, pages = prefilled(model, [6])  # the gate too can be cast
    ctx = AttnContext.build(cache, pages, [6], [1])
    model.hidden(torch.tensor([3]), ctx)
    model.to(torch.float32)
    assert not lean.fits(ctx)
