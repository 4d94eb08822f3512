"""Text to ids and back, over the `tokenizers` library and the two files of a Hugging Face directory.

Two things here are easy to get wrong, so they are settled in one place:

*Who adds BOS.* A DeepSeek ``tokenizer.json`` adds none; the flag ``add_bos_token`` beside it asks the caller to. A
prompt without BOS still gives fluent text, only worse, so the mistake is silent. `Tokenizer.encode` follows the flag.

*Streaming.* One character may span several ids: 中 is three bytes and perhaps three ids, an emoji four or more.
Decoding each id alone shows replacement marks; decoding everything anew at each id costs quadratic time.
`Detokenizer` does neither.
"""

import codecs
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dsv3.errors import CheckpointError, RequestError

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"


class Tokenizer:
    """Build one with `from_dir`. Safe to share between threads; `stream` gives each request its own state."""

    def __init__(self, definition: str, config: Mapping[str, Any], template: str | None = None) -> None:
        """`definition` is the text of tokenizer.json, `config` the parsed tokenizer_config.json."""
        from tokenizers import Tokenizer as Backend

        self._definition = definition
        self._backend: tokenizers.Tokenizer = Backend.from_str(definition)
        self._backend.no_padding()
        self._backend.no_truncation()  # some files carry a training-time limit that would cut a prompt without a word
        self._config = config
        self._template = template
        added = self._backend.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self.bos_id: int | None = self._id_of("bos_token")
        self.eos_id: int | None = self._id_of("eos_token")
        self.pad_id: int | None = self._id_of("pad_token")
        self._adds_bos = self._follows_bos()
        self._byte_of = _byte_alphabet()
        self._id_bytes: dict[int, bytes] = {}  # filled as ids are streamed: a table of 129,280 would delay the first

    @classmethod
    def from_dir(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Reads tokenizer.json and tokenizer_config.json (and chat_template.jinja where there is one) of a directory.

        Raises CheckpointError when one of the two is missing or unreadable.
        """
        directory = Path(path)
        definition, config_text = (_read(directory / name) for name in (TOKENIZER_FILE, CONFIG_FILE))
        try:
            config = json.loads(config_text)
        except json.JSONDecodeError as error:
            raise CheckpointError(
                f"{directory / CONFIG_FILE} is not valid JSON: {error}. Download it again."
            ) from error
        if not isinstance(config, dict):
            raise CheckpointError(f"{directory / CONFIG_FILE} holds a {type(config).__name__}, expected a JSON object.")
        template = directory / TEMPLATE_FILE
        try:
            return cls(definition, config, _read(template) if template.exists() else _template_in(config))
        except CheckpointError as error:
            raise CheckpointError(f"{directory / CONFIG_FILE}: {error}") from None
        except Exception as error:  # the library raises a bare Exception for every fault of the file
            raise CheckpointError(
                f"{directory / TOKENIZER_FILE} is no tokenizer of the `tokenizers` library: {error}. It is damaged or"
                " of another format (a SentencePiece model must be converted first)."
            ) from error

    def encode(self, text: str, bos: bool | None = None, parse_special: bool = True) -> list[int]:
        """The ids of `text`. bos=None follows the tokenizer's own rule, True and False force it.

        With parse_special=False a special token spelled out in the text becomes ordinary ids, as text from strangers
        should.
        """
        backend = self._backend if parse_special else self._literal
        with _unicode_errors():
            return self._start(bos) + backend.encode(text, add_special_tokens=False).ids

    def encode_batch(
        self, texts: Sequence[str], bos: bool | None = None, parse_special: bool = True
    ) -> list[list[int]]:
        """`encode` for many texts, on all cores unless TOKENIZERS_PARALLELISM=false."""
        backend = self._backend if parse_special else self._literal
        start = self._start(bos)
        with _unicode_errors():
            encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [start + encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 show as U+FFFD, ids beyond the vocabulary as nothing."""
        ids = list(ids)
        try:
            return self._backend.decode(ids, skip_special_tokens=skip_special)
        except OverflowError as error:
            wrong = next(i for i in ids if not 0 <= i < 2**32)
            raise RequestError(f"token id {wrong} is out of range: ids run from 0 to {self.vocab_size - 1}.") from error

    def stream(self) -> "Detokenizer":
        """A fresh incremental decoder: the pieces it gives, joined, are ``decode(ids)``."""
        from tokenizers.decoders import ByteLevel

        byte_level = isinstance(self._backend.decoder, ByteLevel)
        return _ByteDetokenizer(self._bytes_of) if byte_level else _WindowDetokenizer(self)

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> list[int]:
        """The ids of a conversation, each message having "role" and "content". The template writes BOS itself.

        Raises RequestError when there is no chat template, or when the template refuses the messages.
        """
        if self._template is None:
            raise RequestError(
                "this tokenizer has no chat template (its model was not tuned to converse). Use plain continuation:"
                " give the beginning of a text instead of messages."
            )
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping) or "role" not in message:
                raise RequestError(f'message {i} is {message!r}: expected a mapping with "role" and "content".')
        return self.encode(_render(self._template, self._config, messages, add_generation_prompt), bos=False)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id. The model's own vocab_size may be larger (padded), never smaller."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of tokenizer.json: equal fingerprints give equal ids. Tokenised data carries it."""
        return hashlib.sha256(self._definition.encode()).hexdigest()

    def is_special(self, token_id: int) -> bool:
        """Whether `decode` leaves this id out."""
        return token_id in self._special_ids

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's spelling of an id (for figures and tables: in byte-level form, not readable text)."""
        return self._backend.id_to_token(token_id)

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def _start(self, bos: bool | None) -> list[int]:
        if not (self._adds_bos if bos is None else bos):
            return []
        if self.bos_id is None:
            raise RequestError("bos=True, but the tokenizer names no bos_token. Use bos=None or bos=False.")
        return [self.bos_id]

    def _follows_bos(self) -> bool:
        flag = self._config.get("add_bos_token")
        if flag is None:  # no word on it in the config: do what the post-processor of tokenizer.json does (Llama 3)
            return self.bos_id is not None and self._backend.encode("").ids[:1] == [self.bos_id]
        if flag and self.bos_id is None:
            raise CheckpointError("add_bos_token is true, but there is no bos_token. Name one, or set it to false.")
        return bool(flag)

    def _id_of(self, key: str) -> int | None:
        token = self._config.get(key)
        if isinstance(token, dict):  # older files write an AddedToken with its "content"
            token = token.get("content")
        if token is None:
            return None
        token_id = self._backend.token_to_id(token)
        if token_id is None:
            raise CheckpointError(f"{key} is {token!r}, which is not in the vocabulary of {TOKENIZER_FILE}.")
        return token_id

    @cached_property
    def _literal(self) -> "tokenizers.Tokenizer":
        # A second instance: the switch is a state of the object, and flipping it would race with other threads.
        from tokenizers import Tokenizer as Backend

        backend = Backend.from_str(self._definition)
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        return backend

    def _bytes_of(self, token_id: int) -> bytes:
        """The bytes that an id of a byte-level vocabulary stands for: none for special ids and ids beyond the
        vocabulary.
        """
        known = self._id_bytes.get(token_id)
        if known is None:
            token = "" if self.is_special(token_id) else self._backend.id_to_token(token_id) or ""
            try:
                known = bytes(self._byte_of[c] for c in token)
            except KeyError:  # an added token is kept as plain text
                known = token.encode()
            self._id_bytes[token_id] = known
        return known


class Detokenizer(Protocol):
    """Ids in, one at a time; text out, in whole characters only. Special tokens give nothing."""

    def push(self, token_id: int) -> str:
        """The text that this id completes: "" while a character is still unfinished."""
        ...

    def flush(self) -> str:
        """What is left when no more ids will come: U+FFFD where a character was cut short. Ready for a new text
        after.
        """
        ...


class _ByteDetokenizer:
    """Byte-level vocabularies (GPT-2's alphabet: DeepSeek, Llama 3, Qwen, ours): constant work per id."""

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        return self._utf8.decode(self._bytes_of(token_id))

    def flush(self) -> str:
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


class _WindowDetokenizer:
    """Any other decoder (Metaspace, byte fallback, WordPiece): decodes a short window again, shows what is new in it.

    What invalid fallback bytes show may differ from `decode`, which judges a whole run of byte ids at once.

    The window holds the last *shown* ids as left context, because such decoders treat the first id of a text apart
    (they drop its space), and the ids since. Its size is bounded, so the work per id is too.
    """

    _MAX_PENDING = 32  # a character takes at most 4 byte ids; a longer wait means the bytes are no text

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        if self._tokenizer.is_special(token_id):
            return ""
        self._pending.append(token_id)
        return self._show(final=len(self._pending) > self._MAX_PENDING)

    def flush(self) -> str:
        text = self._show(final=True) if self._pending else ""
        self._context, self._pending = [], []
        return text

    def _show(self, final: bool) -> str:
        before = self._tokenizer.decode(self._context)
        whole = self._tokenizer.decode(self._context + self._pending)
        if not final and (len(whole) <= len(before) or whole.endswith("\N{REPLACEMENT CHARACTER}")):
            return ""
        self._context, self._pending = self._pending, []
        return whole[len(before) :]


@contextmanager
def _unicode_errors() -> Iterator[None]:
    try:
        yield
    except TypeError as error:
        raise RequestError(
            "cannot encode the text: expected a str of valid Unicode, without lone surrogates (which stand for bytes"
            " of an input that was not UTF-8)."
        ) from error


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's one character per byte: printable Latin-1 stands for itself, the other 68 bytes for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no {file.name} in {file.parent}. Expected a Hugging Face directory with {TOKENIZER_FILE} and"
            f" {CONFIG_FILE}."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error


def _template_in(config: Mapping[str, Any]) -> str | None:
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template


def _render(template: str, config: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], prompt: bool) -> str:
    # A template is a program that came with the weights: it runs in jinja's sandbox, as in transformers.
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise RequestError("chat templates need jinja2: pip install jinja2") from error

    def refuse(message: str) -> None:
        raise TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    special = {n: t["content"] if isinstance(t, dict) else t for n in names if (t := config.get(n)) is not None}
    try:
        return env.from_string(template).render(
            messages=list(messages),
            add_generation_prompt=prompt,
            tools=None,
            documents=None,
            raise_exception=refuse,
            **special,
        )
    except TemplateError as error:
        raise RequestError(f"the chat template cannot render these messages: {error}") from error
    except (TypeError, KeyError, ValueError) as error:  # a fault inside the template's own code
        raise RequestError(f"the chat template failed on these messages: {type(error).__name__}: {error}") from error
