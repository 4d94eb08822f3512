"""Text files to token files: read documents, tokenise them once, keep them as flat arrays of 16-bit ids.

A *text file* is UTF-8, plain or ``.xz``: paragraphs on lines, a line ``<|doc|>`` between documents. A *token file* is
a zip of ``.npy`` arrays (so `numpy.load` opens it too) with a ``meta.json``. For each language it holds

- ``tokens``  uint16 (T,)            every document as BOS, text, EOS, one after another
- ``starts``  int64  (documents + 1) where each begins; document d is ``tokens[starts[d]:starts[d + 1]]``
- ``n_bytes`` int64  (documents,)    UTF-8 length of each text, for bits per byte

The zip's checksums reveal a damaged or cut file; the tokeniser's fingerprint in ``meta.json`` one that belongs
elsewhere.
"""

import argparse
import csv
import errno
import io
import json
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from dsv3.errors import CapacityError, CheckpointError, ConfigError
from dsv3.tokenizer import Tokenizer

SEPARATOR = "<|doc|>"
Item = TypeVar("Item")
_FORMAT = "dsv3-tokens-1"
# What reading a damaged zip, or a zip of something else, can raise.
_DAMAGE = (zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError, ValueError, KeyError, TypeError)
_ARRAYS = {"tokens": np.uint16, "starts": np.int64, "n_bytes": np.int64}
_DOCUMENTS_AT_ONCE = 128  # one call into the tokeniser, which spreads it over the cores


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
            store = cls(languages, meta["fingerprint"], meta["vocab_size"], meta["bos_id"], meta["eos_id"])
            known = meta["format"] == _FORMAT
        except FileNotFoundError as error:
            raise CheckpointError(f"no token file {path}. Make it from text files with dsv3.train.corpus.") from error
        except _DAMAGE as error:
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
    if tokenizer.bos_id is None or tokenizer.eos_id is None:
        raise ConfigError("the tokeniser names no bos_token or no eos_token, which separate the training documents.")
    if tokenizer.vocab_size > 2**16:
        raise ConfigError(f"vocabulary of {tokenizer.vocab_size} ids: token files hold 16-bit ids, 65536 at most.")
    pieces: list[np.ndarray] = []
    n_bytes: list[int] = []
    for some in _chunks(texts, _DOCUMENTS_AT_ONCE):
        for ids in tokenizer.encode_batch(some, bos=True, parse_special=False):
            pieces.append(np.array([*ids, tokenizer.eos_id], dtype=np.uint16))
        n_bytes += [len(text.encode()) for text in some]
    starts = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
    return Documents(np.concatenate(pieces), starts, np.array(n_bytes, dtype=np.int64))


def tokenize_files(
    sources: Mapping[str, str | os.PathLike[str]], tokenizer: Tokenizer, *, progress: bool = True
) -> TokenStore:
    """One text file per language -> a store. The bar on stderr counts bytes of the (compressed) files."""
    from tqdm import tqdm

    total = sum(os.path.getsize(path) for path in sources.values() if os.path.exists(path))
    languages = {}
    with tqdm(total=total, unit="B", unit_scale=True, disable=not progress) as bar:
        for language, path in sources.items():
            bar.set_description(f"tokenise {language}")
            languages[language] = tokenize(read_documents(path, bar.update), tokenizer)
    return _store(languages, tokenizer)


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
    args = parser.parse_args()
    from dsv3.weights import resolve  # here, because it imports torch, which nothing else in this file needs

    tokenizer = Tokenizer.from_dir(resolve(args.tokenizer))
    for split in ("train", "val"):
        sources = {language: args.corpus / f"{language}.{split}.txt.xz" for language in args.languages}
        tokenize_files(sources, tokenizer).save(args.out / f"{split}.npz", compress=args.compress)
    verses = tokenize_verses(args.corpus / "parallel.tsv.xz", args.languages, tokenizer)
    verses.save(args.out / "heldout.npz", compress=args.compress)


if __name__ == "__main__":
    main()
