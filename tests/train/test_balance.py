"""Counts, the balance loss against Eq. 17-20 written out, and a skewed router that the bias evens out."""

import pytest
import torch

from dsv3.expert_load import max_violation
from dsv3.layers.gate import Gate
from dsv3.model.transformer import Transformer
from dsv3.parallel.group import Group
from dsv3.train.balance import Router, count_by_sequence, sequence_balance_loss, update_bias


def test_counts_are_per_sequence():
    indices_TK = torch.tensor([[0, 1], [0, 2], [3, 1], [3, 2]])
    assert count_by_sequence(indices_TK, 2, 4).tolist() == [[2, 1, 1, 0], [0, 1, 1, 2]]
    assert count_by_sequence(indices_TK, 1, 4).tolist() == [[2, 2, 2, 2]]


def test_balance_loss_is_equation_17_to_20():
    B, S, E, K = 3, 5, 6, 2
    scores_TE = torch.rand(B * S, E, requires_grad=True)
    expected = torch.zeros(())
    for sequence in scores_TE.view(B, S, E).unbind():
        f, p = [0.0] * E, [torch.zeros(())] * E
        for token in sequence:
            for i in token.argsort(descending=True)[:K].tolist():
                f[i] += E / (K * S)
            for i in range(E):
                p[i] = p[i] + token[i] / token.sum() / S
        expected = expected + sum(f_i * p_i for f_i, p_i in zip(f, p, strict=True)) / B
    loss = sequence_balance_loss(scores_TE, B, K)
    torch.testing.assert_close(loss, expected)
    (want,) = torch.autograd.grad(expected, scores_TE)  # f is made of numbers here: the gradient passes through P only
    (got,) = torch.autograd.grad(loss, scores_TE)
    torch.testing.assert_close(got, want)


def test_balance_loss_is_one_when_even_and_counts_each_sequence_alone():
    even_TE = torch.eye(4).repeat(2, 1) + 0.01
    assert sequence_balance_loss(even_TE, 2, 1).item() == pytest.approx(1.0)
    # Two sequences, each wholly on one expert: even as a batch, as uneven as can be one by one.
    torn_TE = torch.eye(2).repeat_interleave(4, dim=0) + 1e-6
    assert sequence_balance_loss(torn_TE, 1, 1).item() == pytest.approx(1.0, rel=1e-4)
    assert sequence_balance_loss(torn_TE, 2, 1).item() == pytest.approx(2.0, rel=1e-4)


def test_bias_falls_for_the_busy_and_rises_for_the_idle():
    bias_E = torch.tensor([0.5, 0.5, 0.5, 0.5])
    update_bias(bias_E, torch.tensor([7, 1, 4, 4]), 0.1)
    torch.testing.assert_close(bias_E, torch.tensor([0.4, 0.6, 0.5, 0.5]))


def test_bias_sees_a_difference_of_one_among_many_tokens():
    bias_E = torch.zeros(2)
    update_bias(bias_E, torch.tensor([2**30 + 1, 2**30 - 1]), 1.0)
    assert bias_E.tolist() == [-1.0, 1.0]


def router_step(gate: Gate, router: Router, x_TD: torch.Tensor, speed: float) -> float:
    with router.listen() as heard:
        gate(x_TD)
    router.load_GE += router.load(heard, 1)
    return max_violation(router.finish_step(speed)[0])


def test_max_vio_of_a_skewed_router_falls_and_the_weights_never_see_the_bias(small_config):
    config = small_config("v3")
    gate = Gate(config)
    torch.nn.init.normal_(gate.weight, std=0.1)
    gate.weight.data[:3] += 0.05  # inputs are positive on average below: three experts attract everyone
    router = Router(gate, config)
    batches = [torch.randn(512, config.dim) + 0.5 for _ in range(300)]
    violations = [router_step(gate, router, x_TD, 0.01) for x_TD in batches]
    assert violations[0] > 2.0
    assert sum(violations[-20:]) / 20 < 0.25  # 128 choices an expert: chance alone leaves about 0.2

    weights_TK, indices_TK = gate(batches[0])
    scores_TK = (batches[0] @ gate.weight.T).sigmoid().gather(1, indices_TK)
    expected_TK = scores_TK / scores_TK.sum(-1, keepdim=True) * config.route_scale
    torch.testing.assert_close(weights_TK, expected_TK)


def test_no_speed_no_change(small_config):
    config = small_config("v3")
    gate = Gate(config)
    torch.nn.init.normal_(gate.weight)
    router = Router(gate, config)
    router_step(gate, router, torch.randn(64, config.dim), 0.0)
    assert gate.bias is not None
    assert not gate.bias.any()


def test_load_is_summed_over_the_ranks_before_the_bias_moves(small_config):
    config = small_config("v3")
    elsewhere_E = torch.zeros(config.n_routed_experts, dtype=torch.int64)
    elsewhere_E[5] = 10**6

    class WithAnotherRank(Group):
        def all_reduce(self, x):
            return x.add_(elsewhere_E)

    gate = Gate(config)
    torch.nn.init.normal_(gate.weight)
    router = Router(gate, config, group=WithAnotherRank(rank=0, size=2))
    router_step(gate, router, torch.randn(64, config.dim), 0.1)
    assert gate.bias is not None
    assert gate.bias[5].item() == pytest.approx(-0.1)
    assert (gate.bias > 0).sum() == config.n_routed_experts - 1


def test_the_router_hears_every_gate_of_a_model_and_falls_silent_after(small_config):
    config = small_config("v3")
    model = Transformer(config, dtype=torch.float32)
    router = Router(model, config)
    assert router.names == ["layers.1.ffn.gate", "layers.2.ffn.gate", "mtp.0.ffn.gate"]
    tokens_BS = torch.randint(config.vocab_size, (2, 8))
    with router.listen() as heard:
        model.predict_next(0, model.hidden(tokens_BS), tokens_BS)
    load_GE = router.load(heard, 2)
    assert load_GE.sum(1).tolist() == [2 * 8 * config.n_activated_experts] * 3
    loss = router.balance_loss(heard, 2)
    assert loss.item() >= 3 * 0.9
    loss.backward()
    assert all(gate.weight.grad is not None for gate in router.gates)

    model(tokens_BS)
    assert len(heard.scores_TE) == 3


def test_a_dense_model_has_nothing_to_balance(small_config):
    config = small_config("v3", n_dense_layers=3, n_mtp_layers=0)
    router = Router(Transformer(config, dtype=torch.float32), config)
    with router.listen() as heard:
        pass
    assert router.balance_loss(heard, 1) == 0
    assert router.finish_step(0.1).shape[0] == 0
