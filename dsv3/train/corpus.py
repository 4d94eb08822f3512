"""Text files to token files: read documents, tokenise them once, keep them as flat arrays of 16-bit ids.

A *text file* is UTF-8, plain or ``.xz``: paragraphs on lines, a line ``<|doc|>`` between documents. A *token file* is
a zip of ``.npy`` arrays (so `numpy.load` opens it too) with a ``meta.json``. For each language it holds

- ``tokens``  uint16 (T,)            every document as BOS, text, EOS, one after another
- ``starts``  int64  (documents + 1) where each begins; document d is ``tokens[starts[d]:starts[d + 1]]``
- ``n_bytes`` int64  (documents,)    UTF-8 length of each text, for bits per byte

The zip's checksums reveal a damaged or cut file; the tokeniser's fingerprint in ``meta.json`` one that belongs
elsewhere.

What stands here as a language is any *stream* of documents that training mixes with the others. The command adds one
of synthetic documents for each language, "recall-en" and so on (`dsv3.train.recall`). Such a stream may hold more than
an epoch should take: ``per_epoch`` says what share of a pass over it one epoch takes, 1 where nothing is said.
"""

import argparse
import csv
import errno
import io
import json
import lzma
import math
import multiprocessing
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np

from dsv3.errors import CapacityError, CheckpointError, ConfigError
from dsv3.tokenizer import Tokenizer

SEPARATOR = "<|doc|>"
Item = TypeVar("Item")
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")
_FORMAT = "dsv3-tokens-1"
# What reading a damaged zip, or a zip of something else, can raise.
_DAMAGE = (zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError, ValueError, KeyError, TypeError)
_ARRAYS = {"tokens": np.uint16, "starts": np.int64, "n_bytes": np.int64}
_MAX_WORKERS = 16  # more would wait for the files to be read, which this process does
_DOCUMENTS_AT_ONCE = 64  # one call into the tokeniser, which spreads it over the cores


@dataclass(frozen=True)
class Documents:
    """The tokenised documents of one language; the arrays are described at the head of this file."""

    tokens: np.ndarray
    starts: np.ndarray
    n_bytes: np.ndarray

    def __len__(self) -> int:
        return len(self.n_bytes)

    def __getitem__(self, d: int) -> np.ndarray:
        """Ids of document d, BOS and EOS included."""
        return self.tokens[self.starts[d] : self.starts[d + 1]]

    @property
    def total_bytes(self) -> int:
        return int(self.n_bytes.sum())


@dataclass(frozen=True)
class TokenStore:
    """Tokenised documents by language, with what is needed to tell that they fit a tokeniser and a model."""

    languages: dict[str, Documents]
    fingerprint: str  # Tokenizer.fingerprint
    vocab_size: int
    bos_id: int
    eos_id: int
    per_epoch: dict[str, float] = field(default_factory=dict)  # share of a pass that an epoch takes; all are filled in

    def __post_init__(self) -> None:
        """Raises ConfigError when `per_epoch` names a stream that is not there, or is no positive number."""
        if unknown := set(self.per_epoch) - set(self.languages):
            raise ConfigError(
                f"per_epoch names {', '.join(sorted(unknown))}; the token file holds {', '.join(self.languages)}."
            )
        whole = {language: float(self.per_epoch.get(language, 1.0)) for language in self.languages}
        if not all(0 < share < math.inf for share in whole.values()):
            raise ConfigError(f"per_epoch {dict(self.per_epoch)}: expected numbers greater than 0.")
        object.__setattr__(self, "per_epoch", whole)

    def __getitem__(self, language: str) -> Documents:
        if language not in self.languages:
            raise ConfigError(f"no language {language!r} in the token file: it holds {', '.join(self.languages)}.")
        return self.languages[language]

    def check(self, *, vocab_size: int | None = None, tokenizer: Tokenizer | None = None) -> None:
        """Raises ConfigError unless the ids fit a model of `vocab_size` and were made by `tokenizer`."""
        if vocab_size is not None and self.vocab_size > vocab_size:
            raise ConfigError(
                f"the token file uses a vocabulary of {self.vocab_size} ids, the model has vocab_size {vocab_size}."
                f" Set vocab_size to {self.vocab_size} or more, or tokenise the text with the model's tokeniser."
            )
        if tokenizer is not None and self.fingerprint != tokenizer.fingerprint:
            raise ConfigError(
                f"the token file was made with another tokeniser (sha256 {self.fingerprint[:12]}, this one is"
                f" {tokenizer.fingerprint[:12]}): its ids mean other text. Tokenise the text again."
            )

    def save(self, path: str | os.PathLike[str], *, compress: bool = False) -> None:
        """Writes the token file. compress=True: LZMA, about half the size, some seconds to read, a minute to write."""
        meta = {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "vocab_size": self.vocab_size,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "languages": {
                name: {"documents": len(docs), "tokens": len(docs.tokens), "bytes": docs.total_bytes}
                for name, docs in self.languages.items()
            },
            "per_epoch": self.per_epoch,
        }
        method = zipfile.ZIP_LZMA if compress else zipfile.ZIP_STORED
        with replacing(path) as beside, zipfile.ZipFile(beside, "w", method) as archive:
            archive.writestr("meta.json", json.dumps(meta, indent=1))
            for name, docs in self.languages.items():
                for array in _ARRAYS:
                    with archive.open(f"{name}.{array}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, getattr(docs, array), allow_pickle=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "TokenStore":
        """Reads and verifies a token file. Raises CheckpointError when it is missing, damaged, cut short or of
        another kind.
        """
        path = Path(path)
        try:
            with zipfile.ZipFile(path) as archive:
                meta = json.loads(archive.read("meta.json"))
                languages = {name: _read_documents(archive, name) for name in meta["languages"]}
            per_epoch = dict(meta.get("per_epoch", {}))  # files from before there was such a share lack it
            store = cls(languages, meta["fingerprint"], meta["vocab_size"], meta["bos_id"], meta["eos_id"], per_epoch)
            known = meta["format"] == _FORMAT
        except FileNotFoundError as error:
            raise CheckpointError(f"no token file {path}. Make it from text files with dsv3.train.corpus.") from error
        except (*_DAMAGE, ConfigError) as error:
            raise CheckpointError(
                f"{path} is damaged, cut short or no token file ({type(error).__name__}: {error}). Make it again."
            ) from error
        if not known:
            raise CheckpointError(
                f"{path} has format {meta['format']!r}, expected {_FORMAT!r}. Make it again from the text."
            )
        for name, docs in languages.items():
            _verify(f"{path}, language {name}", docs, store.vocab_size)
        return store


def first_documents(store: TokenStore, n: int | None) -> TokenStore:
    """The store with only the first ``n`` documents of each language; all of them for None."""
    if n is None:
        return store
    cut: dict[str, Documents] = {}
    for language, documents in store.languages.items():
        starts = documents.starts[: n + 1]
        cut[language] = Documents(documents.tokens[: starts[-1]], starts, documents.n_bytes[:n])
    return replace(store, languages=cut)


def read_documents(path: str | os.PathLike[str], on_bytes: Callable[[int], object] | None = None) -> Iterator[str]:
    """The non-empty documents of one text file, read as a stream. `on_bytes(n)` hears how many bytes of the file were
    read.

    Raises ConfigError when the file is missing, damaged, not UTF-8 (with the line) or holds no document.
    """
    path = Path(path)
    lines: list[str] = []
    found = False
    try:
        with path.open("rb") as raw, lzma.LZMAFile(raw) if path.suffix == ".xz" else raw as file:
            seen = 0
            for number, line in enumerate(file, start=1):
                try:
                    text = line.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise ConfigError(
                        f"{path}, line {number}, is not UTF-8: {error.reason}. Convert it: iconv -t UTF-8"
                    ) from error
                if text != SEPARATOR:
                    lines.append(text)
                    continue
                if document := "\n".join(lines).strip("\n"):
                    found = True
                    yield document
                lines = []
                if on_bytes is not None:
                    on_bytes(raw.tell() - seen)
                    seen = raw.tell()
            if on_bytes is not None:
                on_bytes(raw.tell() - seen)
    except (lzma.LZMAError, EOFError) as error:
        raise ConfigError(f"{path} is damaged or cut short: {error}. Fetch it again.") from error
    except OSError as error:
        raise ConfigError(f"cannot read the text file {path}: {error.strerror or error}.") from error
    if document := "\n".join(lines).strip("\n"):
        found = True
        yield document
    if not found:
        raise ConfigError(f"{path} holds no text. Expected documents with a line {SEPARATOR} between them.")


def read_verses(path: str | os.PathLike[str], languages: Iterable[str], split: str = "heldout") -> dict[str, list[str]]:
    """Chapters of the parallel table (columns ref, split, one per language), the same ones for each language.

    Five verses make a paragraph, as in the training text.
    """
    chapters: dict[str, dict[str, list[str]]] = {language: {} for language in languages}
    try:
        with lzma.open(path, "rt", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                if row["split"] == split:
                    for language, verses in chapters.items():
                        verses.setdefault(row["ref"].split(":")[0], []).append(row[language])
    except (lzma.LZMAError, EOFError, KeyError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the verses of {path}: {type(error).__name__}: {error}.") from error
    if not all(chapters.values()):
        raise ConfigError(f"{path} has no verse with split {split!r}.")
    return {
        language: [
            "\n".join(("" if language == "zh" else " ").join(five) for five in _chunks(verses, 5))
            for verses in by_chapter.values()
        ]
        for language, by_chapter in chapters.items()
    }


def tokenize(texts: Iterable[str], tokenizer: Tokenizer) -> Documents:
    """Encodes documents as BOS, text, EOS. Special tokens spelled out in the text stay text.

    Raises ConfigError when the tokeniser has no BOS or EOS, or ids that 16 bits cannot hold.
    """
    _check_marks(tokenizer)
    return join([_encode(tokenizer, some) for some in _chunks(texts, _DOCUMENTS_AT_ONCE)])


def tokenize_files(
    sources: Mapping[str, str | os.PathLike[str]],
    tokenizer: Tokenizer,
    *,
    progress: bool = True,
    workers: "Workers | None" = None,
) -> TokenStore:
    """One text file per language -> a store. The bar on stderr counts bytes of the (compressed) files.

    workers: processes that hold the same tokeniser; with several, the files are read at the same time.
    """
    from tqdm import tqdm

    _check_marks(tokenizer)
    workers = workers or Workers(tokenizer, 1)
    total = sum(os.path.getsize(path) for path in sources.values() if os.path.exists(path))
    with tqdm(total=total, unit="B", unit_scale=True, disable=not progress) as bar:

        def tokenize_file(source: tuple[str, str | os.PathLike[str]]) -> Documents:
            language, path = source
            bar.set_description(f"tokenise {language}")
            parts: list[Future[Documents]] = []
            read: list[int] = []  # bytes not yet shown: they count once their documents are ids
            for some in _chunks(read_documents(path, read.append), _DOCUMENTS_AT_ONCE):
                parts.append(workers.submit(_encode, some))
                n_read = sum(read)
                parts[-1].add_done_callback(lambda _, n=n_read: bar.update(n))
                read.clear()
            documents = join([part.result() for part in parts])
            bar.update(sum(read))
            return documents

        with ThreadPoolExecutor(len(sources) if workers.count > 1 else 1) as readers:
            languages = dict(zip(sources, readers.map(tokenize_file, sources.items()), strict=True))
    return _store(languages, tokenizer)


def join(parts: list[Documents]) -> Documents:
    """The documents of all parts, one after another."""
    starts = np.cumsum([0, *np.concatenate([np.diff(part.starts) for part in parts])], dtype=np.int64)
    return Documents(
        np.concatenate([part.tokens for part in parts]), starts, np.concatenate([part.n_bytes for part in parts])
    )


class Workers:
    """Processes that each hold the tokeniser, which is slow to send along; one worker is this process itself.

    The tokeniser's own threads use all cores for finding ids, but turning those into arrays is Python's work, one core
    a process.
    """

    def __init__(self, tokenizer: Tokenizer, count: int) -> None:
        if count < 1:
            raise ConfigError(f"{count} workers: expected 1 or more.")
        self.count, self._tokenizer = count, tokenizer
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        if self.count > 1:
            # Not forked: the tokeniser's threads would not exist in the copy, and their locks would stay shut.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.count, context, _hold, (self._tokenizer,))
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def submit(
        self,
        function: Callable[Concatenate[Tokenizer, Arguments], Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> "Future[Result]":
        """function(tokenizer, ...) in one of the processes; done at once where there is but this one."""
        if self._pool is not None:
            return self._pool.submit(_call, function, args, kwargs)
        done: Future[Result] = Future()
        done.set_result(function(self._tokenizer, *args, **kwargs))
        return done


_held: list[Tokenizer] = []  # the tokeniser of a worker process, and nothing in any other


def _hold(tokenizer: Tokenizer) -> None:
    _held[:] = [tokenizer]


def _call(function: Callable[..., Result], args: tuple[object, ...], kwargs: dict[str, object]) -> Result:
    return function(_held[0], *args, **kwargs)


def _encode(tokenizer: Tokenizer, texts: list[str]) -> Documents:
    encoded = tokenizer.encode_batch(texts, bos=True, parse_special=False)
    pieces = [np.array([*ids, tokenizer.eos_id], dtype=np.uint16) for ids in encoded]
    starts = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
    return Documents(np.concatenate(pieces), starts, np.array([len(text.encode()) for text in texts], dtype=np.int64))


def _check_marks(tokenizer: Tokenizer) -> None:
    if tokenizer.bos_id is None or tokenizer.eos_id is None:
        raise ConfigError("the tokeniser names no bos_token or no eos_token, which separate the training documents.")
    if tokenizer.vocab_size > 2**16:
        raise ConfigError(f"vocabulary of {tokenizer.vocab_size} ids: token files hold 16-bit ids, 65536 at most.")


def tokenize_verses(path: str | os.PathLike[str], languages: Iterable[str], tokenizer: Tokenizer) -> TokenStore:
    """The held-out chapters of the parallel table as a store: the same text in each language, seen in none."""
    chapters = read_verses(path, languages)
    return _store({language: tokenize(texts, tokenizer) for language, texts in chapters.items()}, tokenizer)


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place at the end: whatever happens, `path` is old or new,
    whole.

    Raises CapacityError when the disk is full, ConfigError when the place cannot be written to.
    """
    path = Path(path)
    beside = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        os.replace(beside, path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise CapacityError(
                f"no room left on the disk for {path}: free some, or choose another directory."
            ) from error
        raise ConfigError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _store(languages: dict[str, Documents], tokenizer: Tokenizer) -> TokenStore:
    assert tokenizer.bos_id is not None  # tokenize() has checked both
    assert tokenizer.eos_id is not None
    return TokenStore(languages, tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)


def _read_documents(archive: zipfile.ZipFile, language: str) -> Documents:
    arrays = {}
    for name, dtype in _ARRAYS.items():
        # Read whole, not as a stream: only reaching the member's end makes zipfile compare its checksum.
        array = np.lib.format.read_array(io.BytesIO(archive.read(f"{language}.{name}.npy")), allow_pickle=False)
        if array.dtype != dtype or array.ndim != 1:
            raise ValueError(
                f"{language}.{name} is {array.dtype} {array.shape}, expected one dimension of {dtype.__name__}"
            )
        arrays[name] = array
    return Documents(**arrays)


def _verify(where: str, docs: Documents, vocab_size: int) -> None:
    ends_right = len(docs.starts) == len(docs) + 1 and docs.starts[0] == 0 and docs.starts[-1] == len(docs.tokens)
    if not len(docs) or not ends_right or (np.diff(docs.starts) < 2).any():
        raise CheckpointError(
            f"{where}: the document table does not cover the tokens. Make the file again from the text."
        )
    if (largest := int(docs.tokens.max())) >= vocab_size:
        raise CheckpointError(
            f"{where}: token id {largest} is outside its vocabulary of {vocab_size} ids. Make it again."
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dsv3.train.corpus", description="Tokenise a corpus.")
    parser.add_argument("corpus", type=Path, help="directory with LANGUAGE.{train,val}.txt.xz and parallel.tsv.xz")
    parser.add_argument("out", type=Path, help="directory for train.npz, val.npz and heldout.npz")
    parser.add_argument("--tokenizer", default="tiny", help="directory with tokenizer.json (default: the embedded one)")
    parser.add_argument("--languages", nargs="+", default=["en", "es", "zh"])
    parser.add_argument("--compress", action="store_true", help="LZMA: half the size, slower to write and to read")
    parser.add_argument(
        "--recall",
        type=float,
        default=0.03,
        metavar="SHARE",
        help="share of each language's rows that are recall documents, 0 for none (default: %(default)s)",
    )
    parser.add_argument(
        "--recall-epochs", type=int, default=12, metavar="N", help="epochs until recall documents repeat (%(default)s)"
    )
    parser.add_argument(
        "--recall-length",
        type=int,
        default=1024,
        metavar="N",
        help="tokens of a recall document: the seq_len of the training run (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=min(os.cpu_count() or 1, _MAX_WORKERS),
        metavar="N",
        help=f"processes (default: one per core, {_MAX_WORKERS} at most)",
    )
    args = parser.parse_args()
    # Here, because recall builds on this file, and weights imports torch, which nothing else in this file needs.
    from dsv3.train.recall import add_recall
    from dsv3.weights import resolve

    tokenizer = Tokenizer.from_dir(resolve(args.tokenizer))
    files = {
        split: {language: args.corpus / f"{language}.{split}.txt.xz" for language in args.languages}
        for split in ("train", "val")
    }
    with Workers(tokenizer, args.workers) as workers:
        train = tokenize_files(files["train"], tokenizer, workers=workers)
        options = {"share": args.recall, "epochs": args.recall_epochs, "length": args.recall_length}
        train = add_recall(train, tokenizer, **options, workers=workers)
    train.save(args.out / "train.npz", compress=args.compress)
    tokenize_files(files["val"], tokenizer).save(args.out / "val.npz", compress=args.compress)
    verses = tokenize_verses(args.corpus / "parallel.tsv.xz", args.languages, tokenizer)
    verses.save(args.out / "heldout.npz", compress=args.compress)
    for name, docs in train.languages.items():
        n_tokens = round(len(docs.tokens) * train.per_epoch[name])
        sys.stderr.write(f"{name}: {len(docs)} documents, {n_tokens} tokens an epoch\n")


if __name__ == "__main__":
    main()
