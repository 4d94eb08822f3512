"""Token files to training batches: documents shuffled, packed without padding, languages mixed.

A language's documents, in the shuffled order of one *pass*, make one long stream, which is cut into rows of `seq_len`
positions. Each row is read with 1 + `mtp` tokens more: the targets of its last positions (next token, and one further
per MTP module). So every token is a target once per pass, and nothing is padding.

    stream   | BOS once upon ... EOS | BOS in a ... EOS | BOS ...
    row 0    |---- seq_len ----|++                                 ++ = 1 + mtp tokens that row 1 begins with
    row 1                      |---- seq_len ----|++

An *epoch* is a list of rows of all languages in stated proportions, shuffled, so a batch mixes languages and books. A
language that needs more rows than it has starts its next pass, in a new order; one that needs fewer goes on in the next
epoch where it stopped. Over the epochs none of its rows is left out. Without proportions an epoch takes one pass of
each language, or that part of it which the token file states (``per_epoch``).

Documents of exactly `seq_len` tokens fill one row each, whatever their order (all but the last one of a pass, which
has no row after it to lend 1 + `mtp` tokens). Recall documents are of such a kind.

Every batch is a function of (seed, epoch, step) alone: resuming needs no other state, and rank r of w takes the r-th
share of each global batch. A batch is one `searchsorted` and one gather on whichever device holds the tokens (45M ids
are 90 MB), so with the stream on the GPU a training step never waits for the host.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from dsv3.errors import ConfigError
from dsv3.train.corpus import Documents, TokenStore


@dataclass(frozen=True)
class Batch:
    """Rows of seq_len + 1 + mtp tokens; S below is that width. Position i predicts tokens_BS[:, i + 1]."""

    tokens_BS: torch.Tensor  # int64
    documents_BS: torch.Tensor  # int32: equal numbers within a row are one document (to mask attention across)
    positions_BS: torch.Tensor  # int32: from 0 where a document, or the row, begins
    languages_B: torch.Tensor  # int64: index into `languages` of the data set


class _Stream:
    """Documents of a flat token array, put in an order and read as one sequence."""

    def __init__(self, tokens: torch.Tensor, starts: np.ndarray, lengths: np.ndarray) -> None:
        """`tokens`: ids, 16 bits each, in an int16 tensor. Document j of the order has lengths[j] from starts[j] on."""
        self._tokens = tokens
        ends = np.cumsum(lengths)
        self.length = int(ends[-1])
        self.device = tokens.device
        self._ends, self._begins, self._shift = (
            torch.from_numpy(a).to(tokens.device) for a in (ends, ends - lengths, starts - (ends - lengths))
        )

    def rows(self, first_B: torch.Tensor, width: int, languages_B: torch.Tensor) -> Batch:
        """The rows of `width` tokens that begin at the stream's positions first_B."""
        at_BS = first_B[:, None] + torch.arange(width, device=first_B.device)
        document_BS = torch.searchsorted(self._ends, at_BS, right=True)
        # int16 with a mask, since torch's uint16 lacks most operators
        tokens_BS = self._tokens[at_BS + self._shift[document_BS]].to(torch.int64) & 0xFFFF
        positions_BS = at_BS - torch.maximum(self._begins[document_BS], first_B[:, None])
        return Batch(tokens_BS, document_BS.to(torch.int32), positions_BS.to(torch.int32), languages_B)


class PackedDataset:
    """Training batches of a store. `languages` names what Batch.languages_B indexes; `steps_per_epoch` is fixed."""

    def __init__(
        self,
        store: TokenStore,
        seq_len: int,
        batch_size: int,
        *,
        mtp: int = 1,
        proportions: Mapping[str, float] | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        """batch_size: rows per rank and step. proportions: share of rows per language (any scale); None takes the
        part of a pass of each that `store.per_epoch` states. device: where the tokens live and the batches appear.

        Raises ConfigError for sizes below 1, unknown languages, a language shorter than a row, an epoch shorter than
        a step.
        """
        for name, value, least in (("seq_len", seq_len, 1), ("batch_size", batch_size, 1), ("mtp", mtp, 0)):
            if value < least:
                raise ConfigError(f"{name} is {value}, expected {least} or more.")
        if not 0 <= rank < world:
            raise ConfigError(f"rank {rank} of a world of {world}: expected 0 <= rank < world.")
        self.languages = tuple(store.languages)
        self.seq_len, self.width, self.batch_size = seq_len, seq_len + 1 + mtp, batch_size
        self._seed, self._rank, self._world = seed, rank, world
        self._documents = [store[language] for language in self.languages]
        self._tokens, self._offsets = _flatten(self._documents, device)
        self._rows_per_pass = []
        for language, documents in zip(self.languages, self._documents, strict=True):
            self._rows_per_pass.append((len(documents.tokens) - 1 - mtp) // seq_len)
            if self._rows_per_pass[-1] < 1:
                raise ConfigError(
                    f"language {language!r} has {len(documents.tokens)} tokens, fewer than one row of {self.width}."
                    " Shorten seq_len or give more text."
                )
        self._rows_per_epoch = self._apportion(proportions, store.per_epoch)
        self.steps_per_epoch = sum(self._rows_per_epoch) // (batch_size * world)
        if self.steps_per_epoch == 0:
            raise ConfigError(
                f"an epoch has {sum(self._rows_per_epoch)} rows of {seq_len} tokens, fewer than one step of"
                f" {batch_size} x {world}. Lower batch_size or seq_len, or give more text."
            )
        # The plan of the current epoch and of one more, for a caller that looks back across the border.
        self._plan = lru_cache(maxsize=2)(self._make_plan)

    @property
    def tokens_per_step(self) -> int:
        """Next-token targets per step over all ranks."""
        return self.batch_size * self._world * self.seq_len

    def batch(self, epoch: int, step: int) -> Batch:
        """This rank's rows of step `step` (0 .. steps_per_epoch - 1) of `epoch`."""
        if epoch < 0 or not 0 <= step < self.steps_per_epoch:
            raise ConfigError(f"epoch {epoch}, step {step}: an epoch has steps 0 to {self.steps_per_epoch - 1}.")
        stream, first_rows, languages = self._plan(epoch)
        begin = (step * self._world + self._rank) * self.batch_size
        mine = slice(begin, begin + self.batch_size)
        return stream.rows(first_rows[mine], self.width, languages[mine])

    def iterate(self, epoch: int = 0, step: int = 0) -> Iterator[tuple[int, int, Batch]]:
        """(epoch, step, batch) from there on, without end. To resume, start at the step after the last one taken."""
        while True:
            while step < self.steps_per_epoch:
                yield epoch, step, self.batch(epoch, step)
                step += 1
            epoch, step = epoch + 1, 0

    def _apportion(self, proportions: Mapping[str, float] | None, per_epoch: Mapping[str, float]) -> list[int]:
        if proportions is None:
            return [round(n * per_epoch[name]) for name, n in zip(self.languages, self._rows_per_pass, strict=True)]
        unknown = set(proportions) - set(self.languages)
        if unknown:
            raise ConfigError(
                f"proportions name {', '.join(sorted(unknown))}; the token file holds {', '.join(self.languages)}."
            )
        shares = np.array([proportions.get(language, 0.0) for language in self.languages], dtype=np.float64)
        if not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() <= 0:
            raise ConfigError(f"proportions {dict(proportions)}: expected numbers of 0 or more, one of them positive.")
        return [int(n) for n in np.rint(shares / shares.sum() * sum(self._rows_per_pass))]

    def _make_plan(self, epoch: int) -> tuple[_Stream, torch.Tensor, torch.Tensor]:
        """The epoch's stream (language after language, pass after pass) and the first position and language of each
        row.
        """
        starts, lengths, first_rows, row_languages = [], [], [], []
        offset = 0  # where the current pass begins in the stream
        for i, documents in enumerate(self._documents):
            per_pass, per_epoch = self._rows_per_pass[i], self._rows_per_epoch[i]
            row, end = epoch * per_epoch, (epoch + 1) * per_epoch  # counted through all passes of this language
            while row < end:
                number, within = divmod(row, per_pass)
                rows = np.arange(within, min(per_pass, within + end - row))
                order = np.random.default_rng((self._seed, 1 + i, number)).permutation(len(documents))
                starts.append(self._offsets[i] + documents.starts[order])
                lengths.append(np.diff(documents.starts)[order])
                first_rows.append(offset + rows * self.seq_len)
                row_languages.append(np.full(len(rows), i))
                offset += len(documents.tokens)
                row += len(rows)
        stream = _Stream(self._tokens, np.concatenate(starts), np.concatenate(lengths))
        first, language = np.concatenate(first_rows), np.concatenate(row_languages)
        shuffle = np.random.default_rng((self._seed, 0, epoch)).permutation(len(first))
        device = self._tokens.device
        return stream, torch.from_numpy(first[shuffle]).to(device), torch.from_numpy(language[shuffle]).to(device)


class ValidationSet:
    """All of one language's documents in file order, each target exactly once.

    Iterating gives (batch, scored_BS): scored_BS is bool, (B, seq_len), true where the next-token loss of a position
    counts. False are the targets that the row before has had (the last row is moved back to end with the stream) and
    BOS, which has no text. Sum the losses (nats) where it is true; then bits per byte = sum / ln 2 / `n_bytes`.
    """

    def __init__(
        self,
        store: TokenStore,
        language: str,
        seq_len: int,
        batch_size: int,
        *,
        mtp: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        documents = store[language]
        if seq_len < 1 or batch_size < 1 or mtp < 0:
            raise ConfigError(f"seq_len {seq_len}, batch_size {batch_size}, mtp {mtp}: expected at least 1, 1 and 0.")
        self.n_bytes = documents.total_bytes
        self.seq_len = min(seq_len, len(documents.tokens) - 1)
        self._width, self._batch_size, self._bos_id = self.seq_len + 1 + mtp, batch_size, store.bos_id
        # BOS after the end, so that the last tokens, too, stand where the next-token loss sees them as targets.
        after = Documents(np.full(mtp, store.bos_id, np.uint16), np.array([0, mtp]), np.zeros(1, np.int64))
        tokens, _ = _flatten([documents, after], device)
        self._stream = _Stream(tokens, documents.starts, np.append(np.diff(documents.starts), mtp))
        self._language = list(store.languages).index(language)

    def __len__(self) -> int:
        """Batches per iteration; the last one may have fewer rows."""
        return -(-len(self._first_rows()) // self._batch_size)

    def __iter__(self) -> Iterator[tuple[Batch, torch.Tensor]]:
        first = self._first_rows()
        fresh = np.diff(first, prepend=first[0] - self.seq_len)  # how many of a row's targets, its last ones, are new
        device = self._stream.device
        for begin in range(0, len(first), self._batch_size):
            part = slice(begin, begin + self._batch_size)
            first_B, fresh_B = (torch.from_numpy(a[part]).to(device) for a in (first, fresh))
            batch = self._stream.rows(first_B, self._width, torch.full_like(first_B, self._language))
            is_new_BS = torch.arange(self.seq_len, device=device) >= self.seq_len - fresh_B[:, None]
            yield batch, is_new_BS & (batch.tokens_BS[:, 1 : self.seq_len + 1] != self._bos_id)

    def _first_rows(self) -> np.ndarray:
        last = self._stream.length - self._width
        return np.append(np.arange(0, last, self.seq_len), last)


def _flatten(documents: list[Documents], device: torch.device | str) -> tuple[torch.Tensor, list[int]]:
    """All ids one after another (int16, the same bits) on `device`, and where each part begins."""
    lengths = [len(part.tokens) for part in documents]
    flat = np.concatenate([part.tokens for part in documents]).view(np.int16)
    return torch.from_numpy(flat).to(device), [sum(lengths[:i]) for i in range(len(lengths))]
