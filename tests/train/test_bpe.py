"""Training of the byte-level BPE on a text small enough to retrain in a test."""

import json
import lzma
from pathlib import Path

import pytest

from dsv3.errors import ConfigError
from dsv3.tokenizer import Tokenizer
from dsv3.train.bpe import N_SPECIAL, SPECIAL_TOKENS, main, save, train_bpe

EN = "the cat sat on the mat and the dog sat on the cat, wasn't it 1984 times? " * 3
ZH = "却说宝玉听了，笑道：“妹妹笑道。”" * 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("bpe")
    save(train_bpe({"en": [EN], "zh": [ZH]}, vocab_size=360), directory)
    return Tokenizer.from_dir(directory)


def test_special_tokens_come_first(trained: Tokenizer) -> None:
    assert len(SPECIAL_TOKENS) == len(set(SPECIAL_TOKENS)) == N_SPECIAL == 64
    assert [trained.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(64))
    assert (trained.bos_id, trained.eos_id, trained.pad_id, trained.vocab_size) == (0, 1, 2, 360)


def test_frequent_words_become_one_id_and_nothing_is_unknown(trained: Tokenizer) -> None:
    assert len(trained.encode(" the", bos=False)) == 1
    assert len(trained.encode("笑道", bos=False)) == 1
    for text in (EN, ZH, "Ἀχιλλεύς \U0001f600\x00"):
        assert trained.decode(trained.encode(text)) == text


def test_no_merge_crosses_a_piece(trained: Tokenizer) -> None:
    for token_id in range(N_SPECIAL + 256, trained.vocab_size):
        token = trained.decode([token_id])
        assert not any(c.isdigit() for c in token)
        assert " " not in token[1:]
        assert not ("，" in token and any(c in token for c in ZH if c.isalpha()))


def test_training_is_reproducible(trained: Tokenizer) -> None:
    again = train_bpe({"en": [EN], "zh": [ZH]}, vocab_size=360)
    assert json.loads(again.to_str()) == json.loads(trained._definition)


def test_languages_are_balanced_by_bytes() -> None:
    """A language a hundred times as long must not take the merges of the other: both are read to the same length."""
    zh = [f"{ZH}{i}" for i in range(400)]
    tokenizer = train_bpe({"zh": zh, "en": [EN]}, vocab_size=360, bytes_per_language=len(EN.encode()))
    few = train_bpe({"zh": zh[: -(-len(EN.encode()) // len(zh[0].encode()))], "en": [EN]}, vocab_size=360)
    assert json.loads(tokenizer.to_str()) == json.loads(few.to_str())


@pytest.mark.parametrize(
    ("documents", "vocab_size", "message"),
    [
        ({"en": [EN]}, 320, "leaves no room for merges"),
        ({"en": ["a b"]}, 1024, "the text gave 321 ids instead of 1024"),
        ({"en": [EN], "es": []}, 330, "no text for language 'es'"),
    ],
)
def test_errors(documents: dict[str, list[str]], vocab_size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_bpe(documents, vocab_size)


def test_command(tmp_path: Path, trained: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    for language, text in (("en", EN), ("zh", ZH)):
        with lzma.open(tmp_path / f"{language}.train.txt.xz", "wt", encoding="utf-8") as file:
            file.write(text)
    out = tmp_path / "out"
    command = ["bpe", str(tmp_path), str(out), "--languages", "en", "zh", "--vocab-size", "360"]
    monkeypatch.setattr("sys.argv", command)
    main()
    assert sorted(file.name for file in out.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert Tokenizer.from_dir(out).fingerprint == trained.fingerprint
