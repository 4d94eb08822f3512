"""The optimiser against torch.optim.AdamW, and what FP32 masters are for."""

import copy

import pytest
import torch
from torch import nn

from dsv3.parallel.group import Group
from dsv3.train.optim import MasterAdamW, learning_rate


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
