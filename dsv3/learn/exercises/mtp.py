"""Chapter 04: shifted targets, the joined input, verification of drafts."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dsv3.engine.speculative import verify
from dsv3.learn.exercises.base import SMALL, Exercise, fill, integer, normal
from dsv3.learn.solutions import mtp as solutions
from dsv3.model.mtp import MTP
from dsv3.model.transformer import Transformer
from dsv3.parallel.group import Parallel
from dsv3.train.loss import hidden_states, shifted_targets

CHAPTER = "04_mtp"


# --- inputs ---------------------------------------------------------------------------------------------------------


def _rows(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for B, S, depth, n_mtp in ((1, 3, 0, 1), (1, 3, 1, 1), (2, 5, 2, 3), (3, 1, 0, 0)):
        yield torch.randint(0, 100, (B, S + 1 + n_mtp), generator=g), depth, n_mtp


def _joins(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for T in (1, 4):
        mtp = MTP(SMALL, 0, dtype=torch.float32, parallel=Parallel()).requires_grad_(False)
        fill(mtp, g)
        yield mtp, normal(g, T, SMALL.dim) * 3, normal(g, T, SMALL.dim)


def _drafts(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    yield [5], []  # nothing was drafted
    yield [5, 7], [5]
    yield [5, 7], [6]
    yield [1, 2, 3, 4], [1, 9, 3]  # right again after a wrong one
    for _ in range(4):
        n = integer(g, 1, 6)
        sampled = torch.randint(0, 3, (n + 1,), generator=g).tolist()
        yield sampled, [t if integer(g, 0, 3) else t + 1 for t in sampled[:-1]]


def _models(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    model = Transformer(SMALL, dtype=torch.float32).requires_grad_(False)
    fill(model, g)
    for B, S in ((1, 3), (2, 6)):
        yield model, torch.randint(0, SMALL.vocab_size, (B, S), generator=g)


# --- specifications -------------------------------------------------------------------------------------------------


def _targets(tokens_BS: Tensor, depth: int, n_mtp: int) -> Tensor:
    return shifted_targets(tokens_BS, depth, n_mtp).view(len(tokens_BS), -1)


def _join(mtp: MTP, h_TD: Tensor, next_embedding_TD: Tensor) -> Tensor:
    return mtp.join(h_TD, next_embedding_TD)


def _mtp_states(model: Transformer, tokens_BS: Tensor) -> Tensor:
    return hidden_states(model, tokens_BS)[1]


# --- known mistakes -------------------------------------------------------------------------------------------------


def _window(offset: int) -> Any:
    def targets(tokens_BS: Tensor, depth: int, n_mtp: int) -> Tensor:
        S = tokens_BS.shape[1] - 1 - n_mtp
        start = depth + offset
        return tokens_BS[:, start : start + S]

    return targets


def _same_for_all(tokens_BS: Tensor, depth: int, n_mtp: int) -> Tensor:
    return _targets(tokens_BS, 0, n_mtp)


def _reversed_order(mtp: MTP, h_TD: Tensor, next_embedding_TD: Tensor) -> Tensor:
    return mtp.eh_proj(torch.cat((mtp.hnorm(h_TD), mtp.enorm(next_embedding_TD)), dim=-1))


def _swapped_norms(mtp: MTP, h_TD: Tensor, next_embedding_TD: Tensor) -> Tensor:
    return mtp.eh_proj(torch.cat((mtp.hnorm(next_embedding_TD), mtp.enorm(h_TD)), dim=-1))


def _no_norms(mtp: MTP, h_TD: Tensor, next_embedding_TD: Tensor) -> Tensor:
    return mtp.eh_proj(torch.cat((next_embedding_TD, h_TD), dim=-1))


def _drafts_only(sampled: list[int], drafts: list[int]) -> list[int]:
    return verify(sampled, drafts)[:-1]


def _not_a_prefix(sampled: list[int], drafts: list[int]) -> list[int]:
    return [token for token, draft in zip(sampled, drafts) if token == draft] + sampled[-1:]


def _all_of_them(sampled: list[int], drafts: list[int]) -> list[int]:
    return list(sampled)


def given_mtp_shift(model: Transformer, tokens_BS: Tensor) -> Tensor:
    h_BSD = model.hidden(tokens_BS[:, :-1])
    return model.predict_next(0, h_BSD, tokens_BS[:, :-1])


def _hidden_shifted(model: Transformer, tokens_BS: Tensor) -> Tensor:
    return model.predict_next(0, model.hidden(tokens_BS)[:, 1:], tokens_BS[:, 1:])


def _ahead_of_its_token(model: Transformer, tokens_BS: Tensor) -> Tensor:
    return model.predict_next(0, model.hidden(tokens_BS[:, 1:]), tokens_BS[:, :-1])


EXERCISES = (
    Exercise(
        id="mtp-1",
        chapter=CHAPTER,
        specification=_targets,
        cases=_rows,
        wrong={"not_shifted": _window(0), "same_for_all": _same_for_all},
        solution=solutions.mtp_1,
    ),
    Exercise(
        id="mtp-2",
        chapter=CHAPTER,
        specification=_join,
        cases=_joins,
        wrong={"reversed_order": _reversed_order, "swapped_norms": _swapped_norms, "no_norms": _no_norms},
        solution=solutions.mtp_2,
    ),
    Exercise(
        id="mtp-3",
        chapter=CHAPTER,
        specification=verify,
        cases=_drafts,
        wrong={"drafts_only": _drafts_only, "not_a_prefix": _not_a_prefix, "all": _all_of_them},
        solution=solutions.mtp_3,
    ),
    Exercise(
        id="bug-mtp-shift",
        chapter=CHAPTER,
        specification=_mtp_states,
        cases=_models,
        wrong={"as_given": given_mtp_shift, "both_shifted": _hidden_shifted, "wrong_way": _ahead_of_its_token},
        solution=solutions.bug_mtp_shift,
        given=given_mtp_shift,
        tolerance=1e-3,
    ),
)
