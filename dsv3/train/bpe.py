"""Trains the byte-level BPE of the embedded model.

How text becomes ids, in order:

1. *NFC*, so that ``é`` typed as one code point or as two gives the same ids.
2. *Pre-tokeniser*: pieces across which no merge may reach. As in DeepSeek's tokeniser, digits, runs of Chinese (or
   kana), words with the space before them, runs of punctuation and line ends are kept apart. Ours takes digits one by
   one: 8,192 ids are too few to spend 1,100 on numbers, and single digits make arithmetic position by position.
3. *Bytes*: each piece becomes its UTF-8 bytes, all 256 of which are in the vocabulary, so no text is unknown.
4. *Merges*, learned here: the most frequent neighbouring pair becomes a new id, again and again until the vocabulary
   is full.

The languages get the same number of bytes to learn from, else the largest file would take the merges of the others.
"""

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dsv3.errors import ConfigError
from dsv3.tokenizer import CONFIG_FILE, TOKENIZER_FILE
from dsv3.train.corpus import read_documents, replacing

if TYPE_CHECKING:
    import tokenizers

N_SPECIAL = 64
BOS, EOS, PAD = "<|begin_of_sentence|>", "<|end_of_sentence|>", "<|pad|>"
_NAMED = (BOS, EOS, PAD, "<|system|>", "<|user|>", "<|assistant|>", "<|end_of_turn|>", "<|en|>", "<|es|>", "<|zh|>")
# The ids 0..63, in order. Those without a role yet keep later instruction tuning from having to resize the embedding.
SPECIAL_TOKENS = _NAMED + tuple(f"<|reserved_{k}|>" for k in range(N_SPECIAL - len(_NAMED)))

# Each pattern cuts its matches out as pieces of their own; what it does not match goes on to the next.
_DIGIT = r"\p{N}"
_CJK = r"[\p{Han}\p{Hiragana}\p{Katakana}]+"
_WORDS = "|".join(
    (
        r"'(?i:s|t|re|ve|m|ll|d)(?![\p{L}\p{M}])",  # English contractions; the look-ahead spares the quote in 'the
        r" ?[\p{L}\p{M}]+",  # a word with its space; marks belong to it, for scripts that NFC cannot compose
        r" ?[\p{P}\p{S}]+",  # punctuation, which in Spanish may open a word: " ¿", " —"
        r"\s*[\r\n]+",  # line ends with the blanks before them
        r"\s+(?!\S)",  # blanks up to the last one, which goes to the word that follows
        r"\s+",
    )
)
_MAX_TOKEN_BYTES = 24  # keeps a phrase that one book repeats (eight Chinese characters) from becoming an id


def untrained() -> "tokenizers.Tokenizer":
    """The tokeniser with all its steps but no merges."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in (_DIGIT, _CJK, _WORDS)]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_bpe(
    documents: Mapping[str, Iterable[str]], vocab_size: int = 8192, bytes_per_language: int = 46_000_000
) -> "tokenizers.Tokenizer":
    """Learns merges from the first `bytes_per_language` bytes of each language's documents (shuffle them beforehand).

    The result adds BOS itself when asked for special tokens, so that every reader of the file agrees with
    ``add_bos_token``. Raises ConfigError when `vocab_size` has no room for the bytes and special tokens, or is not
    reached.
    """
    from tokenizers import pre_tokenizers, processors, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= N_SPECIAL + len(alphabet):
        raise ConfigError(
            f"vocab_size {vocab_size} leaves no room for merges: {N_SPECIAL} special tokens and {len(alphabet)} bytes"
            " come first. Choose 1024 or more."
        )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(alphabet),
        max_token_length=_MAX_TOKEN_BYTES,
        show_progress=False,
    )
    tokenizer = untrained()
    tokenizer.train_from_iterator(_balanced(documents, bytes_per_language), trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ConfigError(
            f"the text gave {tokenizer.get_vocab_size()} ids instead of {vocab_size}: every word is one id already."
            " Give more text or choose a smaller vocab_size."
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B:1", special_tokens=[(BOS, SPECIAL_TOKENS.index(BOS))]
    )
    return tokenizer


def _balanced(documents: Mapping[str, Iterable[str]], bytes_per_language: int) -> Iterator[str]:
    for language, texts in documents.items():
        left = bytes_per_language
        for text in texts:
            yield text
            left -= len(text.encode())
            if left <= 0:
                break
        if left == bytes_per_language:
            raise ConfigError(
                f"no text for language {language!r}: give at least one document or leave the language out."
            )


def save(tokenizer: "tokenizers.Tokenizer", directory: str | os.PathLike[str]) -> None:
    """Writes the two files that `dsv3.tokenizer.Tokenizer.from_dir` and transformers' `AutoTokenizer` read."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
    }
    for name, text in (
        (TOKENIZER_FILE, tokenizer.to_str(pretty=False)),
        (CONFIG_FILE, json.dumps(config, indent=2) + "\n"),
    ):
        with replacing(Path(directory) / name) as beside:
            beside.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dsv3.train.bpe", description="Train the byte-level BPE on a corpus."
    )
    parser.add_argument("corpus", type=Path, help="directory with LANGUAGE.train.txt.xz")
    parser.add_argument("out", type=Path, help="directory for tokenizer.json and tokenizer_config.json")
    parser.add_argument("--languages", nargs="+", default=["en", "es", "zh"])
    parser.add_argument("--vocab-size", type=int, default=8192)
    args = parser.parse_args()
    files = {language: args.corpus / f"{language}.train.txt.xz" for language in args.languages}
    save(train_bpe({name: read_documents(file) for name, file in files.items()}, args.vocab_size), args.out)


if __name__ == "__main__":
    main()
