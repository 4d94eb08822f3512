"""DeepSeekMoE against a plain loop over tokens and experts (V3 Eq. 12), and at its edges."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3 import kernels
from dsv3.config import ModelConfig
from dsv3.errors import ConfigError
from dsv3.layers.linear import FP8
from dsv3.layers.moe import Experts, MoE
from dsv3.parallel.group import Group, Parallel
from tests.conftest import SmallConfig
from tests.layers.test_basic import Alone
from tests.model_helpers import assert_close, randomise, relative_error
from tests.parallel.slices import fill


def make_moe(config: ModelConfig, dtype: torch.dtype = torch.float32) -> MoE:
    moe = MoE(config, dtype=dtype, parallel=Parallel())
    randomise(moe)
    return moe


def swiglu(x_D: Tensor, w1: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
    return w2 @ (F.silu(w1 @ x_D) * (w3 @ x_D))


def plain_loop(moe: MoE, x_TD: Tensor) -> Tensor:
    """Eq. 12 without the residual, one token and one expert at a time."""
    weights_TK, indices_TK = moe.gate(x_TD)
    rows = []
    for x_D, weights, indices in zip(x_TD, weights_TK, indices_TK.tolist(), strict=True):
        y_D = torch.zeros_like(x_D)
        for weight, e in zip(weights, indices, strict=True):
            w1, w3 = moe.experts.w13[e]
            y_D = y_D + weight * swiglu(x_D, w1, moe.experts.w2[e], w3)
        if moe.shared_experts is not None:
            shared = moe.shared_experts
            y_D = y_D + swiglu(x_D, shared.w1.weight, shared.w2.weight, shared.w3.weight)
        rows.append(y_D)
    return torch.stack(rows)


@pytest.mark.parametrize("tokens", [1, 2, 33])
def test_equals_a_plain_loop(any_small_config: ModelConfig, tokens: int) -> None:
    moe = make_moe(any_small_config)
    x_TD = torch.randn(tokens, any_small_config.dim)
    assert_close(moe(x_TD), plain_loop(moe, x_TD))


def test_gradients_equal_the_plain_loops(small_config: SmallConfig) -> None:
    moe = make_moe(small_config("v3"))
    x_TD = torch.randn(5, moe.gate.weight.shape[1])
    direction_TD = torch.randn_like(x_TD)

    def gradients(y_TD: Tensor) -> dict[str, Tensor]:
        moe.zero_grad()
        (y_TD * direction_TD).sum().backward()
        return {name: p.grad.clone() for name, p in moe.named_parameters() if p.grad is not None}

    ours, expected = gradients(moe(x_TD)), gradients(plain_loop(moe, x_TD))
    assert ours.keys() == expected.keys() == dict(moe.named_parameters()).keys()
    for name in ours:
        assert_close(ours[name], expected[name])
    # Only experts that received tokens learn.
    visited = set(moe.gate(x_TD)[1].flatten().tolist())
    assert len(visited) < 16
    for e in range(16):
        assert (ours["experts.w2"][e].norm() > 0) == (e in visited)
        assert (ours["experts.w13"][e].norm() > 0) == (e in visited)


def test_leading_dimensions_are_kept(small_config: SmallConfig) -> None:
    moe = make_moe(small_config("v3"))
    x = torch.randn(2, 3, 64)
    assert torch.equal(moe(x), moe(x.flatten(0, 1)).view(2, 3, 64))


def test_no_shared_experts(small_config: SmallConfig) -> None:
    moe = make_moe(small_config("v3", n_shared_experts=0))
    assert moe.shared_experts is None
    x_TD = torch.randn(7, 64)
    assert_close(moe(x_TD), plain_loop(moe, x_TD))


def test_all_tokens_to_the_same_experts(small_config: SmallConfig) -> None:
    moe = make_moe(small_config("v3", n_activated_experts=1))
    assert moe.gate.bias is not None
    moe.gate.bias.zero_()[9] = 10.0
    x_TD = torch.randn(40, 64)
    assert set(moe.gate(x_TD)[1].flatten().tolist()) == {9}
    assert_close(moe(x_TD), plain_loop(moe, x_TD))


def test_no_tokens(small_config: SmallConfig) -> None:
    assert make_moe(small_config("v3"))(torch.zeros(0, 64)).shape == (0, 64)


@pytest.mark.parametrize("counts", [[0, 0, 0, 6], [6, 0, 0, 0], [2, 0, 4, 0], [1, 2, 1, 2]])
def test_experts_that_receive_nothing(counts: list[int]) -> None:
    experts = Experts(4, 24, 20, dtype=torch.float32, scale_fmt=None)
    randomise(experts)
    rows_MD = torch.randn(6, 24)
    owner_M = torch.repeat_interleave(torch.arange(4), torch.tensor(counts)).tolist()
    expected = torch.stack(
        [swiglu(x, experts.w13[e, 0], experts.w2[e], experts.w13[e, 1]) for x, e in zip(rows_MD, owner_M, strict=True)]
    )
    assert_close(experts(rows_MD, torch.tensor(counts)), expected)


@pytest.mark.parametrize("hidden", [144, 256], ids=["partial blocks", "whole blocks"])
@pytest.mark.parametrize("scale_fmt", [None, "ue8m0"])
def test_fp8_experts_multiply_what_was_stored(scale_fmt: str | None, hidden: int) -> None:
    """Against the FP8 product of each expert alone, to the last bit."""
    experts = Experts(3, 200, hidden, dtype=FP8, scale_fmt=scale_fmt)
    randomise(experts)
    assert experts.w13_scale is not None
    assert experts.w2_scale is not None
    assert experts.w13_scale.shape == (3, 2, 2, 2)
    assert experts.w2_scale.shape == (3, 2, 2)
    counts = [4, 0, 3]
    rows_MD = torch.randn(7, 200, dtype=torch.bfloat16)

    def fp8(x: Tensor, w: Tensor, s: Tensor) -> Tensor:
        return kernels.fp8_gemm(*kernels.act_quant(x, scale_fmt=scale_fmt), w, s, torch.bfloat16)

    parts = []
    for e, rows in enumerate(rows_MD.split(counts)):
        if len(rows):
            gate, up = (fp8(rows, experts.w13[e, i], experts.w13_scale[e, i]) for i in range(2))
            parts.append(fp8(F.silu(gate) * up, experts.w2[e], experts.w2_scale[e]))
    assert torch.equal(experts(rows_MD, torch.tensor(counts)), torch.cat(parts))


def test_fp8_experts_of_whole_blocks_copy_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """w1 and w3 go as one matrix: as two, each would be a strided half of w13, which a kernel has to copy first."""
    experts = Experts(3, 200, 256, dtype=FP8, scale_fmt=None)
    randomise(experts)
    weights: list[Tensor] = []
    product = kernels.fp8_grouped_linear
    monkeypatch.setattr(kernels, "fp8_grouped_linear", lambda x, w, *rest: (weights.append(w), product(x, w, *rest))[1])
    experts(torch.randn(7, 200, dtype=torch.bfloat16), torch.tensor([4, 0, 3]))
    assert [w.is_contiguous() for w in weights] == [True, True]
    assert weights[0].data_ptr() == experts.w13.data_ptr()


def test_fp8_moe_is_close_to_the_stored_weights_in_fp32(small_config: SmallConfig) -> None:
    config = small_config("v3", dim=256, moe_inter_dim=160)
    moe = make_moe(config, FP8)
    plain = make_moe(config)
    for name, parameter in plain.named_parameters():
        owner, leaf = name.rpartition(".")[::2]
        stored = moe.get_submodule(owner).get_parameter(leaf)
        if stored.dtype == FP8:
            scale = getattr(moe.get_submodule(owner), "scale" if leaf == "weight" else f"{leaf}_scale")
            parameter.data = kernels.weight_dequant(stored, scale, dtype=torch.float32)
        else:
            parameter.data = stored.data
    assert plain.gate.bias is not None
    assert moe.gate.bias is not None
    plain.gate.bias.copy_(moe.gate.bias)
    x_TD = torch.randn(20, 256, dtype=torch.bfloat16)
    # Two roundings of activations to e4m3 in a row (2.6% each), through a SwiGLU.
    assert 0.01 < relative_error(moe(x_TD), plain(x_TD.float())) < 0.08


def test_shared_experts_of_two_ranks_sum_to_the_whole(small_config: SmallConfig) -> None:
    """Routed experts stand whole on each rank of a tensor-parallel group, so only the shared part is summed."""
    whole = make_moe(small_config("v3"))
    x_TD = torch.randn(6, 64)
    assert whole.shared_experts is not None
    routed_TD = whole(x_TD) - whole.shared_experts(x_TD)
    shared_TD = torch.zeros_like(x_TD)
    for rank in range(2):
        group = Alone(rank, 2)
        part = MoE(small_config("v3"), dtype=torch.float32, parallel=Parallel(tp=group))
        fill(part, whole, group)
        shared_TD += part(x_TD) - routed_TD
    assert_close(routed_TD + shared_TD, whole(x_TD))


def test_expert_parallelism_is_refused_rather_than_computed_wrongly(small_config: SmallConfig) -> None:
    with pytest.raises(ConfigError, match="expert parallelism over 2 ranks needs a dispatcher"):
        MoE(small_config("v3"), dtype=torch.float32, parallel=Parallel(ep=Group(rank=1, size=2)))
