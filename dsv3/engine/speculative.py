"""Several tokens per step without changing one of them: multi-token prediction as a drafter (V3 §2.2, §5.4.3).

The MTP module takes the main model's hidden state at position i and token i + 1, and predicts token i + 2. After a step
it runs over the very positions that the main model just computed, so it shares their attention context, and its own
layer of the latent cache grows along. Its guess is fed in the next step behind the last known token. That step's logits
say what the model itself would choose after each draft: as long as that is the draft, the next row's choice counts too.

Nothing is lost, greedy or not. The token at each place is always the one sampled from the model's own distribution
there, with that place's own random number (``Sequence.noise``); a draft only decides whether the row behind it was
computed in time. The positions of refused drafts hold latents of tokens that never came: nobody attends to them, and
the next step writes over them.
"""

from typing import Protocol

import torch
from torch import Tensor

from dsv3.engine.batch import Batch
from dsv3.engine.runner import Runner
from dsv3.engine.sequence import Sequence
from dsv3.layers.cache import AttnContext


def verify(sampled: list[int], drafts: list[int]) -> list[int]:
    """The new tokens: ``sampled[j]`` is what the model chose after the first j drafts, true while those were right."""
    right = 0
    for draft, token in zip(drafts, sampled):
        if draft != token:
            break
        right += 1
    return sampled[: right + 1]


class Drafter(Protocol):
    """Sets ``drafts`` of the batch's sequences for the next step, after this step's tokens were appended."""

    n_drafts: int

    def draft(self, batch: Batch, h_TD: Tensor) -> None: ...


class MTPDrafter:
    """Drafts up to ``n_drafts`` tokens, always the likeliest ones.

    Released models have one MTP module. Drafts after the first feed it its own output, and are right less often.
    """

    def __init__(self, runner: Runner, n_drafts: int) -> None:
        self.runner = runner
        self.n_drafts = n_drafts

    def draft(self, batch: Batch, h_TD: Tensor) -> None:
        next_tokens: list[int] = []
        rows: list[int] = []
        ready: list[Sequence] = []
        at = 0
        for seq, start, n in zip(batch.seqs, batch.starts, batch.q_lens):
            following = seq.token_ids[start + 1 : start + n + 1]
            next_tokens += following
            next_tokens += [0] * (n - len(following))  # behind refused drafts: no one reads these rows
            seq.drafts = []
            if room_for_drafts(seq) > 0:
                rows.append(at + seq.n_computed - 1 - start)
                ready.append(seq)
            at += n
        if all(seq.finish_reason is not None for seq in batch.seqs):
            return
        if self.n_drafts == 1:
            drafts_T = self.runner.recorded_draft(batch, next_tokens)
            if drafts_T is not None:
                likeliest = drafts_T.tolist()
                for seq, row in zip(ready, rows):
                    seq.drafts = [likeliest[row]]
                return
        device = h_TD.device
        h_TD = self.runner.draft(h_TD, torch.tensor(next_tokens, device=device), batch.ctx)
        if not ready:
            return
        if len(rows) < at:
            h_TD = h_TD.index_select(0, torch.tensor(rows, device=device))
        for step in range(self.n_drafts):
            if step:
                keep = [i for i, seq in enumerate(ready) if room_for_drafts(seq) > step]
                if not keep:
                    return
                h_TD = h_TD[keep]
                ready = [ready[i] for i in keep]
                starts = [seq.n_computed - 1 + step for seq in ready]
                ctx = AttnContext.build(self.runner.cache, [seq.pages for seq in ready], starts, [1] * len(ready))
                h_TD = self.runner.draft(h_TD, torch.tensor([seq.drafts[-1] for seq in ready], device=device), ctx)
            for seq, token in zip(ready, self.runner.logits(h_TD).argmax(-1).tolist()):
                seq.drafts.append(token)


def room_for_drafts(seq: Sequence) -> int:
    """How many drafts could still become output: none inside a prompt, and one token always comes from the model."""
    if seq.finish_reason is not None or len(seq.token_ids) - seq.n_computed != 1:
        return 0
    return seq.max_len - len(seq.token_ids) - 1
