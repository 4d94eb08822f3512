"""The optimiser against torch.optim.AdamW, and what FP32 masters are for."""

import copy

import pytest
import torch
from torch import nn

from dsv3.model.transformer import Transformer
from dsv3.parallel.group import Group
from dsv3.train.optim import MasterAdamW, MasterMuon, learning_rate, orthogonalize


def network(dtype=torch.float32):
    return nn.Sequential(nn.Linear(8, 16, bias=False), nn.RMSNorm(16), nn.Linear(16, 4, bias=False)).to(dtype)


def test_equals_torch_adamw_with_clipping():
    ours, theirs = network(), network()
    theirs.load_state_dict(ours.state_dict())
    optimizer = MasterAdamW(ours.named_parameters(), clip=0.5)
    decayed = [p for p in theirs.parameters() if p.ndim > 1]
    rest = [p for p in theirs.parameters() if p.ndim == 1]
    expected = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    for step in range(20):
        x, lr = torch.randn(32, 8), 1e-2 / (step + 1)
        for group in expected.param_groups:
            group["lr"] = lr
        for model in (ours, theirs):
            model(x).square().sum().backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        expected.step()
        expected.zero_grad()
        optimizer.accumulate()
        torch.testing.assert_close(optimizer.step(lr), norm)
    assert norm > 0.5  # the clip was at work
    for got, want in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(got, want)


def test_masters_take_the_steps_that_bf16_cannot():
    weight = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = MasterAdamW([("weight", weight)], weight_decay=0.0)
    for _ in range(50):
        weight.grad = torch.ones_like(weight)
        optimizer.accumulate()
        optimizer.step(1e-4)  # below half of BF16's spacing at 1: each alone would round away
    assert torch.allclose(weight.float(), torch.tensor(0.995), atol=2**-8)
    assert (weight < 1).all()
    torch.testing.assert_close(optimizer.masters[0], torch.full((4, 4), 0.995))


def test_accumulated_micro_batches_equal_the_whole_batch():
    whole, parts = network(), network()
    parts.load_state_dict(whole.state_dict())
    x = torch.randn(32, 8)
    results = []
    for model, pieces in ((whole, [x]), (parts, list(x.chunk(4)))):
        optimizer = MasterAdamW(model.named_parameters())
        for piece in pieces:
            model(piece).square().mean().backward()
            optimizer.accumulate()
        results.append(optimizer.step(1e-3, divisor=len(pieces)))
    torch.testing.assert_close(results[0], results[1])
    for got, want in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(got, want)


def test_gradients_are_summed_over_the_group():
    class Doubling(Group):
        def all_reduce(self, x):
            return x.mul_(2)

    alone, paired = network(), network()
    paired.load_state_dict(alone.state_dict())
    norms = []
    for model, group, divisor in ((alone, Group(), 1), (paired, Doubling(rank=1, size=2), 2)):
        optimizer = MasterAdamW(model.named_parameters(), group=group)
        model(torch.ones(1, 8)).square().sum().backward()
        optimizer.accumulate()
        norms.append(optimizer.step(1e-3, divisor=divisor))
    torch.testing.assert_close(norms[0], norms[1])
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), paired.parameters(), strict=True))


def test_bf16_moments_end_near_fp32_moments():
    weights = []
    for moments in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = network(torch.bfloat16)
        optimizer = MasterAdamW(model.named_parameters(), moments=moments)
        for _ in range(30):
            model(torch.randn(64, 8, dtype=torch.bfloat16)).float().square().mean().backward()
            optimizer.accumulate()
            optimizer.step(1e-3)
        assert optimizer.first[0].dtype == moments
        weights.append(torch.cat([master.flatten() for master in optimizer.masters]))
    moved = (weights[0] - weights[1]).norm() / weights[0].norm()
    assert 0 < moved < 0.01


def test_state_round_trip_continues_with_the_same_bits():
    torch.manual_seed(1)
    model = network(torch.bfloat16)
    optimizer = MasterAdamW(model.named_parameters())
    batches = [torch.randn(16, 8, dtype=torch.bfloat16) for _ in range(6)]

    def advance(model, optimizer, batches):
        for x in batches:
            model(x).float().square().mean().backward()
            optimizer.accumulate()
            optimizer.step(1e-3)

    advance(model, optimizer, batches[:3])
    saved = copy.deepcopy(optimizer.state_dict())
    advance(model, optimizer, batches[3:])

    other = network(torch.bfloat16)
    resumed = MasterAdamW(other.named_parameters())
    resumed.load_state_dict(saved)
    advance(other, resumed, batches[3:])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(optimizer.masters, resumed.masters, strict=True))


SCHEDULE = {"peak": 1.0, "warmup_steps": 10, "decay_fraction": 0.4, "min_ratio": 0.1}


@pytest.mark.parametrize(
    ("step", "progress", "expected"),
    [(0, 0.0, 0.1), (4, 0.04, 0.5), (9, 0.09, 1.0), (50, 0.5, 1.0), (60, 0.6, 1.0), (80, 0.8, 0.55), (100, 1.0, 0.1)],
)
def test_schedule(step, progress, expected):
    assert learning_rate(progress, step=step, **SCHEDULE) == pytest.approx(expected)


def test_schedule_follows_progress_when_steps_are_few():
    assert learning_rate(1.0, step=20, **SCHEDULE) == pytest.approx(0.1)
    assert learning_rate(2.0, step=20, **SCHEDULE) == pytest.approx(0.1)
    assert learning_rate(0.99, step=20, **SCHEDULE | {"decay_fraction": 0.0, "warmup_steps": 0}) == 1.0


def test_orthogonalised_matrices_keep_their_directions_and_lose_their_scales():
    torch.manual_seed(2)
    matrices_BMN = torch.randn(3, 8, 20) @ torch.diag(torch.logspace(0, -2, 20))
    u, _, v = torch.linalg.svd(matrices_BMN, full_matrices=False)
    steps_BMN = orthogonalize(matrices_BMN)
    s_BMM = u.mT @ steps_BMN @ v.mT  # diagonal: the singular vectors are those of the input
    diagonal_BM = s_BMM.diagonal(dim1=1, dim2=2)
    assert (s_BMM - torch.diag_embed(diagonal_BM)).abs().max() < 1e-3
    assert diagonal_BM.min() > 0.6
    assert diagonal_BM.max() < 1.25


def test_muon_serves_hidden_matrices_stacked_or_not_and_adamw_the_rest(small_config):
    config = small_config("v3")
    model = Transformer(config, dtype=torch.float32)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    adamw = MasterAdamW(copy.deepcopy(model).named_parameters(), weight_decay=0.0)
    muon = MasterMuon(model.named_parameters(), weight_decay=0.0)
    hidden = {muon.names[i] for i in muon.hidden}
    assert {"layers.0.attn.wo.weight", "layers.1.ffn.experts.w13", "mtp.0.eh_proj.weight"} <= hidden
    assert not {"embed.weight", "head.weight", "norm.weight", "layers.1.ffn.gate.weight"} & hidden
    for optimizer in (adamw, muon):
        torch.manual_seed(3)
        for grad in optimizer.grads:
            grad.normal_()
        optimizer.step(1e-2)
    for i, name in enumerate(muon.names):
        if name not in hidden:
            torch.testing.assert_close(muon.masters[i], adamw.masters[i])
            continue
        step = (before[name] - muon.masters[i]).view(-1, *before[name].shape[-2:])
        # Each matrix by itself: all singular values of its step are about lr * 0.2 * sqrt(its larger side).
        values = torch.linalg.svdvals(step) / (1e-2 * 0.2 * max(step.shape[1:]) ** 0.5)
        assert values.median() > 0.6, name  # a random square matrix has a few directions of hardly any size
        assert values.max() < 1.3, name


def test_muon_resumes_with_the_same_bits():
    torch.manual_seed(4)
    shapes = {"layers.0.a": (3, 4, 6), "layers.0.b": (6, 4), "head.weight": (8, 4), "layers.0.norm.weight": (4,)}
    grads = [[torch.randn(shape) for shape in shapes.values()] for _ in range(4)]

    def optimizer() -> MasterMuon:
        return MasterMuon([(name, nn.Parameter(torch.ones(shape))) for name, shape in shapes.items()])

    def advance(optimizer: MasterMuon, steps: list[list[torch.Tensor]]) -> None:
        for step in steps:
            torch._foreach_copy_(optimizer.grads, step)
            optimizer.step(1e-2)

    whole, resumed = optimizer(), optimizer()
    advance(whole, grads[:2])
    saved = copy.deepcopy(whole.state_dict())
    advance(whole, grads[2:])
    resumed.load_state_dict(saved)
    advance(resumed, grads[2:])
    assert all(torch.equal(a, b) for a, b in zip(whole.masters, resumed.masters, strict=True))
