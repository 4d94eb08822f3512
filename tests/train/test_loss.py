"""The chunked loss against torch's own on whole logits, and the targets of Eq. 21-25 against their indices."""

import pytest
import torch
import torch.nn.functional as F

from dsv3.model.transformer import Transformer
from dsv3.train.loss import (
    IGNORE,
    hidden_states,
    language_losses,
    linear_cross_entropy,
    nll_and_gradient,
    score_tokens,
    shifted_targets,
)

T, D, V = 37, 16, 50


def example(dtype=torch.float32):
    x_TD = torch.randn(T, D, dtype=dtype, requires_grad=True)
    weight_VD = torch.randn(V, D, dtype=dtype, requires_grad=True)
    targets_T = torch.randint(V, (T,))
    targets_T[::5] = IGNORE
    return x_TD, weight_VD, targets_T


@pytest.mark.parametrize("chunk", [1, 8, T, 1000])
def test_equals_cross_entropy_of_whole_logits(chunk):
    x_TD, weight_VD, targets_T = example()
    loss = 0.3 * linear_cross_entropy(x_TD, weight_VD, targets_T, chunk=chunk)[0]
    expected = 0.3 * F.cross_entropy(x_TD @ weight_VD.T, targets_T, ignore_index=IGNORE)
    torch.testing.assert_close(loss, expected)
    for got, want in zip(
        torch.autograd.grad(loss, (x_TD, weight_VD)), torch.autograd.grad(expected, (x_TD, weight_VD)), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_bf16_loss_and_gradient_stay_close_to_fp32():
    x_TD, weight_VD, targets_T = example(torch.bfloat16)
    loss, _ = linear_cross_entropy(x_TD, weight_VD, targets_T, chunk=8)
    assert loss.dtype == torch.float32
    loss.backward()
    x, w = (t.detach().float().requires_grad_() for t in (x_TD, weight_VD))
    expected = F.cross_entropy(x @ w.T, targets_T, ignore_index=IGNORE)
    expected.backward()
    # BF16 logits of magnitude 10 are off by up to 0.03 each; the mean and the gradients average that out.
    torch.testing.assert_close(loss, expected, rtol=0.01, atol=0.01)
    assert (x_TD.grad.float() - x.grad).norm() < 0.02 * x.grad.norm()


def test_nothing_to_predict_gives_zero_not_nan():
    x_TD, weight_VD, targets_T = example()
    loss, nll_T = linear_cross_entropy(x_TD, weight_VD, torch.full_like(targets_T, IGNORE))
    loss.backward()
    assert loss == 0
    assert not nll_T.any()
    assert not x_TD.grad.any()


def test_the_kernel_is_what_autograd_says():
    logits_TV = torch.randn(T, V, requires_grad=True)
    targets_T = torch.randint(V, (T,))
    nll_T, grad_TV = nll_and_gradient(logits_TV.detach(), targets_T, torch.tensor(0.5))
    expected_T = F.cross_entropy(logits_TV, targets_T, reduction="none")
    (0.5 * expected_T.sum()).backward()
    torch.testing.assert_close(nll_T, expected_T.detach())
    torch.testing.assert_close(grad_TV, logits_TV.grad)


def test_score_tokens_gives_each_tokens_nats_and_the_greedy_choice():
    x_TD, weight_VD, targets_T = example()
    nll_T, best_T = score_tokens(x_TD, weight_VD, targets_T, chunk=10)
    logits_TV = (x_TD @ weight_VD.T).detach()
    torch.testing.assert_close(nll_T, F.cross_entropy(logits_TV, targets_T, ignore_index=IGNORE, reduction="none"))
    assert torch.equal(best_T, logits_TV.argmax(-1))
    assert not nll_T[targets_T == IGNORE].any()


def test_targets_shift_by_one_more_at_each_depth():
    tokens_BS = torch.arange(20).view(2, 10)  # S = 7 positions, 1 + n_mtp = 3 more
    assert shifted_targets(tokens_BS, 0, 2).view(2, 7)[:, 0].tolist() == [1, 11]
    assert shifted_targets(tokens_BS, 1, 2).view(2, 7)[:, 0].tolist() == [2, 12]
    assert shifted_targets(tokens_BS, 2, 2).view(2, 7)[:, -1].tolist() == [9, 19]


def test_losses_of_the_model_are_those_of_its_logits(small_config):
    config = small_config("v3", n_mtp_layers=2)
    model = Transformer(config, dtype=torch.float32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    tokens_BS = torch.randint(config.vocab_size, (2, 12))  # S = 9
    losses = language_losses(model, tokens_BS, chunk=5)

    h_BSD = model.hidden(tokens_BS[:, :9])
    expected = F.cross_entropy(model.logits(h_BSD).flatten(0, 1), tokens_BS[:, 1:10].flatten())
    torch.testing.assert_close(losses.main, expected)
    assert losses.scored_BS.all()
    torch.testing.assert_close(losses.nll_BS.mean(), expected.detach())
    # Eq. 21: module k at position i joins the state below with token i + k + 1 and predicts token i + k + 2.
    depths = []
    for k in range(2):
        h_BSD = model.predict_next(k, h_BSD, tokens_BS[:, k + 1 : k + 10])
        depths.append(F.cross_entropy(model.logits(h_BSD).flatten(0, 1), tokens_BS[:, k + 2 : k + 11].flatten()))
    torch.testing.assert_close(losses.mtp, torch.stack(depths).mean())


def test_the_mtp_state_of_a_position_sees_one_token_further_than_the_main_one(small_config):
    model = Transformer(small_config("v3"), dtype=torch.float32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    tokens_BS = torch.randint(128, (1, 9))
    changed_BS = tokens_BS.clone()
    changed_BS[0, 5] += 1 if changed_BS[0, 5] < 127 else -1
    states = zip(hidden_states(model, tokens_BS), hidden_states(model, changed_BS), strict=True)
    for depth, (before_BSD, after_BSD) in enumerate(states):
        moved_S = (before_BSD - after_BSD).abs().amax(-1)[0]
        assert (moved_S[: 5 - depth] < 1e-4).all()  # not 0: other rows share the experts' products
        assert moved_S[5 - depth] > 0.01


def test_packed_documents_have_the_losses_that_they_have_alone(small_config):
    """Two rows of three documents each: states, losses and targets are those of every document by itself."""
    config = small_config("v3", n_mtp_layers=1)
    model = Transformer(config, dtype=torch.float32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    S = 14
    tokens_BS = torch.randint(config.vocab_size, (2, S + 2))
    ends = ([3, 9], [1, 12])  # documents are cut within each row; the last goes on beyond the row
    documents_BS = torch.stack([sum((torch.arange(S + 2) >= end).long() for end in row) for row in ends])
    packed = language_losses(model, tokens_BS, documents_BS)
    nats, mtp_nats, n_scored = 0.0, 0.0, 0
    for b in range(2):
        for d in range(3):
            places = (documents_BS[b] == d).nonzero().flatten()
            alone = tokens_BS[b, places]
            n = int((places < S).sum())  # positions of the row; what follows serves as targets only
            h_1SD = model.hidden(alone[:n].unsqueeze(0))
            targets = alone[1 : n + 1]
            nll = F.cross_entropy(model.logits(h_1SD)[0, : len(targets)], targets, reduction="none")
            torch.testing.assert_close(packed.nll_BS[b, places[: len(targets)]], nll.detach(), rtol=1e-4, atol=1e-5)
            n_scored += len(targets)
            nats += nll.sum()
            far = alone[2 : n + 2]
            if len(far):
                state = model.predict_next(0, h_1SD[:, : len(far)], alone[1 : 1 + len(far)].unsqueeze(0))
                mtp_nats += F.cross_entropy(model.logits(state)[0], far, reduction="sum")
    assert int(packed.scored_BS.sum()) == n_scored < 2 * S
    torch.testing.assert_close(packed.main, nats / (2 * S))
    torch.testing.assert_close(packed.mtp, mtp_nats / (2 * S))
