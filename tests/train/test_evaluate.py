"""The figures of evaluation against what can be said without a model, or counted by hand."""

import pytest
import torch

from dsv3.layers.packing import Packing
from dsv3.train.evaluate import evaluate, max_violations
from dsv3.train.trainer import Trainer


def test_bits_per_byte_is_that_of_the_text(micro_run):
    trainer = Trainer(micro_run(), progress=False)
    torch.nn.init.zeros_(trainer.model.head.weight)  # every token then costs ln 64 nats, 6 bits
    bits = trainer.evaluate()["bits_per_byte"]
    for language, validation in trainer.validation.items():
        n_targets = sum(int(scored_BS.sum()) for _, scored_BS in validation)
        assert bits[language] == pytest.approx(6 * n_targets / validation.n_bytes, rel=1e-5)


@torch.no_grad()
def count_by_hand(trainer: Trainer) -> tuple[float, float]:
    """(agreement, MTP loss), position by position."""
    model, agreements, nats, n = trainer.model, 0, 0.0, 0
    for validation in trainer.validation.values():
        for batch, scored_BS in validation:
            tokens_BS, S = batch.tokens_BS, scored_BS.shape[1]
            packing = Packing.of(batch.documents_BS[:, :S])
            h_BSD = model.hidden(tokens_BS[:, :S], packing)
            logits_BSV = model.logits(h_BSD)
            draft_BSV = model.logits(model.predict_next(0, h_BSD, tokens_BS[:, 1 : S + 1], packing))
            for b, i in scored_BS[:, 1:].nonzero().tolist():  # token i + 2: the main model's target at i + 1
                if batch.documents_BS[b, i] != batch.documents_BS[b, i + 2]:
                    continue
                agreements += int(draft_BSV[b, i].argmax() == logits_BSV[b, i + 1].argmax())
                nats -= float(draft_BSV[b, i].log_softmax(-1)[tokens_BS[b, i + 2]])
                n += 1
    return agreements / n, nats / n


def test_agreement_and_mtp_loss_are_those_of_a_loop(micro_run):
    trainer = Trainer(micro_run(), progress=False)
    for _ in range(6):
        trainer.take_step()
    agreement, mtp_loss = count_by_hand(trainer)
    result = evaluate(trainer.model, trainer.validation, trainer.router, chunk=50)
    assert result["mtp_agreement"] == pytest.approx(agreement)
    assert result["mtp_loss"] == pytest.approx(mtp_loss, rel=1e-5)


def test_max_violations_are_named_by_block():
    load_GE = torch.tensor([[4, 0, 2, 2], [3, 3, 3, 3]])
    names = ["layers.1.ffn.gate", "mtp.0.ffn.gate"]
    assert max_violations(names, load_GE) == {"layers.1": 1.0, "mtp.0": 0.0}
