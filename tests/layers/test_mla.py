"""Attention against a plain statement of V3 Eq. 1-11, and the equality of its two forms from any start position."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dsv3.config import ModelConfig
from dsv3.errors import ConfigError
from dsv3.layers.cache import AttnContext
from dsv3.layers.linear import FP8
from dsv3.layers.mla import MLA
from dsv3.layers.rope import inverse_frequencies, rotate, rotations
from dsv3.parallel.group import Group, Parallel
from dsv3.probe import capture
from tests.conftest import SmallConfig
from tests.layers.test_basic import Alone
from tests.model_helpers import assert_close, poisoned_cache, randomise
from tests.parallel.slices import fill


def make_mla(config: ModelConfig, dtype: torch.dtype = torch.float32, parallel: Parallel | None = None) -> MLA:
    mla = MLA(config, 0, dtype=dtype, parallel=parallel or Parallel())
    randomise(mla)
    return mla


def turns(config: ModelConfig, positions: Tensor) -> Tensor:
    return rotations(positions, inverse_frequencies(config))


def full(mla: MLA, config: ModelConfig, x_BSD: Tensor) -> Tensor:
    """The training path: whole sequences, no cache."""
    return mla(x_BSD, turns(config, torch.arange(x_BSD.shape[1])))


@torch.no_grad()
def cached(
    mla: MLA, config: ModelConfig, x_BSD: Tensor, chunks: list[int], pages: list[list[int]], page_size: int
) -> Tensor:
    """Sequences of equal length fed to a poisoned paged cache chunk by chunk."""
    B = x_BSD.shape[0]
    cache = poisoned_cache(config, 1 + max(p for row in pages for p in row), page_size, x_BSD.dtype)
    parts, start = [], 0
    for count in chunks:
        ctx = AttnContext.build(cache, pages, [start] * B, [count] * B)
        new = x_BSD[:, start : start + count].flatten(0, 1)
        parts.append(mla(new, turns(config, ctx.positions_T), ctx).view(B, count, -1))
        start += count
    return torch.cat(parts, dim=1)


def norm(x: Tensor, layer: nn.Module) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.weight


def stated(mla: MLA, config: ModelConfig, x_SD: Tensor) -> Tensor:
    """Eq. 1-11 for one sequence: one head and one query at a time, in double precision."""
    x = x_SD.double()
    twin = copy.deepcopy(mla).double()
    N, C, P = config.qk_nope_head_dim, config.kv_lora_rank, config.v_head_dim
    spin = turns(config, torch.arange(len(x))).to(torch.complex128)

    def rope(v_SR: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(v_SR.unflatten(-1, (-1, 2)).contiguous()) * spin).flatten(-2)

    down = x @ twin.wkv_a.weight.T
    c_kv, k_pe = norm(down[:, :C], twin.kv_norm), rope(down[:, C:])  # Eq. 1, 3
    if twin.wq is not None:
        q = x @ twin.wq.weight.T
    else:
        q = norm(x @ twin.wq_a.weight.T, twin.q_norm) @ twin.wq_b.weight.T  # Eq. 6, 7
    heads = []
    for h, (q_h, w_h) in enumerate(zip(q.chunk(mla.H, -1), twin.wkv_b.weight.chunk(mla.H), strict=True)):
        assert q_h.shape[-1] == config.qk_head_dim, h
        k_h = torch.cat((c_kv @ w_h[:N].T, k_pe), -1)  # Eq. 2, 4
        v_h = c_kv @ w_h[N : N + P].T  # Eq. 5
        q_h = torch.cat((q_h[:, :N], rope(q_h[:, N:])), -1)  # Eq. 8, 9
        rows = []
        for t in range(len(x)):  # Eq. 10
            probabilities = (k_h[: t + 1] @ q_h[t] * config.softmax_scale).softmax(0)
            rows.append(probabilities @ v_h[: t + 1])
        heads.append(torch.stack(rows))
    return torch.cat(heads, -1) @ twin.wo.weight.T  # Eq. 11


def test_equals_the_report(any_small_config: ModelConfig) -> None:
    mla = make_mla(any_small_config)
    x_BSD = torch.randn(2, 9, 64)
    ours = full(mla, any_small_config, x_BSD)
    for y_SD, x_SD in zip(ours, x_BSD, strict=True):
        assert_close(y_SD, stated(mla, any_small_config, x_SD))


@pytest.mark.parametrize("start", [0, 1, 4, 5, 11])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_absorbed_equals_expanded_equals_full(any_small_config: ModelConfig, start: int, count: int) -> None:
    """Any number of query tokens at any start position; the official demo's mask crashes on two tokens at 4."""
    config = any_small_config
    mla = make_mla(config)
    x_BSD = torch.randn(2, start + count, 64)
    expected = full(mla, config, x_BSD)
    chunks = [start, count] if start else [count]
    pages = [[3, 0, 5, 7, 9, 11, 13, 15], [2, 1, 4, 6, 8, 10, 12, 14]]
    mla.expand_above = 0
    assert_close(cached(mla, config, x_BSD, chunks, pages, 4), expected)
    mla.expand_above = float("inf")
    assert_close(cached(mla, config, x_BSD, chunks, pages, 4), expected)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_cut_into_chunks_and_any_pages(data: st.DataObject) -> None:
    config = ModelConfig(
        dim=24,
        n_heads=2,
        kv_lora_rank=12,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=6,
        original_seq_len=data.draw(st.sampled_from([4, 64])),
        rope_factor=4,
    )
    torch.manual_seed(data.draw(st.integers(0, 99)))
    mla = make_mla(config)
    length = data.draw(st.integers(1, 24))
    cuts = sorted(data.draw(st.sets(st.integers(1, length), max_size=6)) | {length})
    chunks = [b - a for a, b in zip([0, *cuts], cuts)]
    page_size = data.draw(st.sampled_from([1, 3, 8, 64]))
    per_sequence = -(-length // page_size)
    pages = data.draw(st.permutations(range(2 * per_sequence)))
    mla.expand_above = data.draw(st.sampled_from([0, 3, float("inf")]))
    x_BSD = torch.randn(2, length, 24)
    y_BSD = cached(mla, config, x_BSD, chunks, [pages[:per_sequence], pages[per_sequence:]], page_size)
    assert_close(y_BSD, full(mla, config, x_BSD))


def test_break_even_of_the_official_shape() -> None:
    with torch.device("meta"):
        mla = MLA(ModelConfig(), 0, dtype=torch.bfloat16, parallel=Parallel())
    # 512 * (128 + 128) multiply-adds expand one cached token; a query saves 2 * 512 + 64 - (128 + 64 + 128).
    assert mla.expand_above == pytest.approx(512 * 256 / 768)
    cheap = ModelConfig(kv_lora_rank=64)
    with torch.device("meta"):  # a latent that is smaller than a head: absorbing never costs more
        assert MLA(cheap, 0, dtype=torch.bfloat16, parallel=Parallel()).expand_above == float("inf")


def test_the_cache_holds_the_normalised_latent_and_the_rotated_key(small_config: SmallConfig) -> None:
    config = small_config("v3")
    mla = make_mla(config)
    cache = poisoned_cache(config, 2, 4)
    x_TD = torch.randn(5, 64)
    ctx = AttnContext.build(cache, [[1, 0]], [0], [5])
    with torch.no_grad(), capture(mla) as records:
        mla(x_TD, turns(config, ctx.positions_T), ctx)
        down = mla.wkv_a(x_TD)
        c_kv, k_pe = norm(down[:, :16], mla.kv_norm), rotate(down[:, 16:], turns(config, torch.arange(5)))
    stored = torch.cat((cache.storage[0, 4:8], cache.storage[0, :1]))
    assert_close(stored, torch.cat((c_kv, k_pe), -1))
    assert cache.storage[0, 1:4].isnan().all()  # what no token owns stays untouched
    assert cache.storage[1:].isnan().all()
    assert torch.equal(torch.cat((records["c_kv"][0], records["k_pe"][0]), -1), stored)
    assert records["q_nope"][0].shape == (5, 4, 16)
    assert records["q_pe"][0].shape == (5, 4, 8)
    probabilities = records["probs_BSHL"][0]
    assert probabilities.shape == (1, 5, 4, 5)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(1, 5, 4))
    assert (probabilities.movedim(2, 1).triu(1) == 0).all()  # no query looks ahead


def test_future_tokens_change_nothing(small_config: SmallConfig) -> None:
    config = small_config("v3")
    mla = make_mla(config)
    x_BSD = torch.randn(1, 8, 64)
    changed = x_BSD.clone()
    changed[:, 5:] += 1
    before, after = full(mla, config, x_BSD), full(mla, config, changed)
    assert_close(after[:, :5], before[:, :5])
    assert (after[:, 5:] - before[:, 5:]).abs().amin(-1).max() > 0


def test_softmax_of_a_bf16_model_is_fp32(small_config: SmallConfig) -> None:
    config = small_config("v3")
    mla = make_mla(config, torch.bfloat16)
    cache = poisoned_cache(config, 8, 4, torch.bfloat16)
    ctx = AttnContext.build(cache, [list(range(8))], [0], [12])
    with torch.no_grad(), capture(mla, "probs_BSHL") as records:
        mla(torch.randn(12, 64, dtype=torch.bfloat16), turns(config, ctx.positions_T), ctx)
    (probabilities,) = records["probs_BSHL"]
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(1, 12, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8], ids=["bf16", "fp8"])
def test_both_forms_agree_in_low_precision(small_config: SmallConfig, dtype: torch.dtype) -> None:
    """FP8: the expanded form rounds the latent to e4m3 on its way through wkv_b, the absorbed one does not."""
    config = small_config("v3")
    mla = make_mla(config, dtype)
    x_BSD = torch.randn(1, 20, 64, dtype=torch.bfloat16)
    pages = [[2, 0, 1, 3, 4]]
    results = []
    for expand_above in (0, float("inf")):
        mla.expand_above = expand_above
        results.append(cached(mla, config, x_BSD, [11, 9], pages, 4))
    assert_close(results[0], results[1], 0.02 if dtype == torch.bfloat16 else 0.08)


# --- the absorbed matrices never outlive the weight ------------------------------------------------------------------


def decode(mla: MLA, config: ModelConfig, x_TD: Tensor) -> Tensor:
    cache = poisoned_cache(config, 4, 4, x_TD.dtype)
    ctx = AttnContext.build(cache, [[0, 1, 2, 3]], [0], [len(x_TD)])
    with torch.no_grad():
        return mla(x_TD, turns(config, ctx.positions_T), ctx)


@pytest.mark.parametrize("dtype", [torch.float32, FP8], ids=["fp32", "fp8"])
@pytest.mark.parametrize("assign", [False, True])
def test_loading_weights_renews_the_absorbed_matrices(
    small_config: SmallConfig, dtype: torch.dtype, assign: bool
) -> None:
    config = small_config("v3")
    used, fresh = make_mla(config, dtype), make_mla(config, dtype)
    used.expand_above = fresh.expand_above = float("inf")
    x_TD = torch.randn(5, 64, dtype=torch.float32 if dtype == torch.float32 else torch.bfloat16)
    before = decode(used, config, x_TD)  # prepares by itself
    used.load_state_dict(fresh.state_dict(), assign=assign)
    assert torch.equal(decode(used, config, x_TD), decode(fresh, config, x_TD))
    assert not torch.equal(decode(used, config, x_TD), before)


@pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda mla: pickle.loads(pickle.dumps(mla))], ids=["copy", "pickle"]
)
def test_a_copy_has_its_own_weight(small_config: SmallConfig, twin_of: Callable[[MLA], MLA]) -> None:
    config = small_config("v3")
    mla = make_mla(config)
    mla.expand_above = float("inf")
    x_TD = torch.randn(5, 64)
    mla.prepare()
    before = decode(mla, config, x_TD)
    twin = twin_of(mla)
    assert torch.equal(decode(twin, config, x_TD), before)
    with torch.no_grad():
        twin.wkv_b.weight.mul_(-1)
    assert torch.equal(decode(mla, config, x_TD), before)
    assert_close(decode(twin, config, x_TD), full(twin, config, x_TD.unsqueeze(0))[0])


def test_a_plain_weight_is_followed_in_place_and_over_a_cast(small_config: SmallConfig) -> None:
    config = small_config("v3")
    mla = make_mla(config)
    mla.expand_above = float("inf")
    w_uk, _ = mla.prepare()
    assert w_uk.data_ptr() == mla.wkv_b.weight.data_ptr()  # views: no second copy of the weight
    x_TD = torch.randn(5, 64)
    with torch.no_grad():
        mla.wkv_b.weight.normal_(0, 0.3)
    assert_close(decode(mla, config, x_TD), full(mla, config, x_TD.unsqueeze(0))[0])
    assert decode(mla.bfloat16(), config, x_TD.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, FP8], ids=["fp32", "fp8"])
def test_prepared_inside_inference_mode_used_outside(small_config: SmallConfig, dtype: torch.dtype) -> None:
    config = small_config("v3")
    mla = make_mla(config, dtype)
    with torch.inference_mode():
        mla.prepare()
    assert decode(mla, config, torch.randn(5, 64, dtype=mla.kv_norm.weight.dtype)).isfinite().all()


# --- tensor parallelism without processes ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v2lite", "v3"])
def test_two_ranks_sum_to_the_whole(small_config: SmallConfig, name: str) -> None:
    config = small_config(name)
    whole = make_mla(config)
    x_BSD = torch.randn(2, 9, 64)
    pages = [[0, 2, 4], [1, 3, 5]]
    full_parts, cached_parts = [], []
    for rank in range(2):
        group = Alone(rank, 2)
        part = make_mla(config, parallel=Parallel(tp=group))
        fill(part, whole, group)
        assert part.H == 2
        assert part.wkv_b.weight.shape == (2 * 32, 16)
        assert part.wo.weight.shape == (64, 2 * 16)
        assert part.wkv_a.weight.shape == whole.wkv_a.weight.shape  # the latent is the same on every rank
        full_parts.append(full(part, config, x_BSD))
        cached_parts.append(cached(part, config, x_BSD, [6, 1, 2], pages, 4))
    expected = full(whole, config, x_BSD)
    assert_close(full_parts[0] + full_parts[1], expected)
    assert_close(cached_parts[0] + cached_parts[1], expected)


def test_heads_that_do_not_divide(small_config: SmallConfig) -> None:
    with pytest.raises(ConfigError, match="n_heads = 4 does not divide by 3 ranks"):
        MLA(small_config("v3"), 0, dtype=torch.float32, parallel=Parallel(tp=Group(0, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, FP8])
@pytest.mark.parametrize("q_lora_rank", [0, 128])
def test_joined_projections_are_the_two_products(
    small_config: SmallConfig, dtype: torch.dtype, q_lora_rank: int
) -> None:
    config = small_config("v3", q_lora_rank=q_lora_rank)
    mla = make_mla(config, dtype)
    x_BSD = torch.randn(2, 5, config.dim, dtype=mla.kv_norm.weight.dtype)
    expected = full(mla, config, x_BSD)
    names = {name: parameter.clone() for name, parameter in mla.state_dict().items()}
    mla.join()
    joined = mla._joined is not None
    assert joined == (dtype != FP8 or (mla.wq or mla.wq_a).out_features % 128 == 0)
    assert torch.equal(full(mla, config, x_BSD), expected)
    for name, parameter in mla.state_dict().items():
        assert torch.equal(parameter, names[name])
    assert mla.to("cpu")._joined is None
