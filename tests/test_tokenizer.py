"""The tokenizer against its own definition, against transformers, and its streaming against whole decoding."""

import json
import random
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

import dsv3.tokenizer as subject
from dsv3.errors import CheckpointError, RequestError
from dsv3.tokenizer import Tokenizer

TINY = Path(subject.__file__).parent / "assets" / "tiny"
TEXTS = (
    "",
    " ",
    "Once upon a time, there wasn't a king who'd rule.\n",
    "— ¿Qué «dices», niño? ¡Ay! Señor, la cigüeña…\n\n",
    "却说宝玉听了，笑道：“妹妹这一去，不知何日再见。”\n",
    "1984 年，３ cats, x² ≠ ½; tabs\tand  spaces ",
    "👩‍👩‍👧‍👦 naïve 🇪🇸 e\u0301tude 한국어 العربية ไทย \x00\x7f\u200b\ufeff",
    "literal <|user|> and <|begin_of_sentence|> in a text",
)


@pytest.fixture(scope="module")
def tiny() -> Tokenizer:
    return Tokenizer.from_dir(TINY)


def write(directory: Path, definition: str, **config: object) -> Path:
    (directory / "tokenizer.json").write_text(definition, encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def tiny_with(directory: Path, **changes: object) -> Tokenizer:
    """The embedded tokenizer with keys of its tokenizer_config.json changed (None removes one)."""
    config = json.loads((TINY / "tokenizer_config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    return Tokenizer.from_dir(write(directory, (TINY / "tokenizer.json").read_text(encoding="utf-8"), **kept))


def sentencepiece_like(directory: Path) -> Tokenizer:
    """Llama-2 style: Metaspace words, rare characters as <0x..> byte tokens, the first space dropped in decoding."""
    words = ["<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "▁the", "▁cat", "s", "▁中", "文", ".", "é"]
    backend = Backend(models.BPE({w: i for i, w in enumerate(words)}, [], byte_fallback=True, fuse_unk=True))
    backend.add_special_tokens(["<s>", "</s>"])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer.from_dir(write(directory, backend.to_str(), bos_token="<s>", eos_token="</s>"))


def wordpiece_like(directory: Path) -> Tokenizer:
    words = ["[UNK]", "[SEP]", "un", "##known", "##s", "cat", ",", "中"]
    backend = Backend(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.add_special_tokens(["[SEP]"])
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    return Tokenizer.from_dir(write(directory, backend.to_str(), eos_token="[SEP]"))


def streamed(tokenizer: Tokenizer, ids: list[int]) -> tuple[list[str], str]:
    stream = tokenizer.stream()
    return [stream.push(i) for i in ids], stream.flush()


# ---------------------------------------------------------------------------------------------------- the embedded one


def test_embedded_vocabulary(tiny: Tokenizer) -> None:
    assert (tiny.vocab_size, tiny.bos_id, tiny.eos_id, tiny.pad_id) == (8192, 0, 1, 2)
    assert [i for i in range(8192) if tiny.is_special(i)] == list(range(64))
    alphabet = subject._byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    assert all(tiny.token_to_id(character) is not None for character in alphabet)
    assert not tiny.has_chat_template


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip_is_nfc(tiny: Tokenizer, text: str) -> None:
    ids = tiny.encode(text, parse_special=False)
    assert ids[0] == tiny.bos_id
    assert not any(tiny.is_special(i) for i in ids[1:])
    assert tiny.decode(ids) == unicodedata.normalize("NFC", text)


@given(text=st.text(max_size=80))
def test_any_text_round_trips(tiny: Tokenizer, text: str) -> None:
    assert tiny.decode(tiny.encode(text, parse_special=False)) == unicodedata.normalize("NFC", text)


def test_pieces_stay_apart(tiny: Tokenizer) -> None:
    """What the pre-tokeniser promises: no id spans digits, or Chinese and punctuation, or a word and its neighbours."""

    def pieces(text: str) -> list[str]:
        return [tiny.decode([i]) for i in tiny.encode(text, bos=False)]

    assert pieces("1984") == ["1", "9", "8", "4"]
    assert pieces("我们。我们") == ["我们", "。", "我们"]
    assert pieces(" the king's") == [" the", " king", "'s"]
    assert pieces("'the") == ["'", "the"]  # a quote, not the contraction 't
    assert pieces(" señor, niño") == [" señor", ",", " niño"]
    assert pieces("he.\n\nHe") == ["he", ".", "\n", "\n", "He"]


def test_decomposed_accents_give_the_same_ids(tiny: Tokenizer) -> None:
    text = "¿Cómo está, señor Núñez? Él llegó."
    assert tiny.encode(unicodedata.normalize("NFD", text)) == tiny.encode(text)


@pytest.mark.parametrize("text", TEXTS)
def test_transformers_gives_equal_ids(tiny: Tokenizer, text: str) -> None:
    transformers = pytest.importorskip("transformers")
    for loader in (transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast):
        theirs = loader.from_pretrained(TINY)
        ids = tiny.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs(text, add_special_tokens=False)["input_ids"] == tiny.encode(text, bos=False)
        assert theirs.decode(ids, skip_special_tokens=True) == tiny.decode(ids)
        assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2)


# --------------------------------------------------------------------------------------------------- BOS and specials


def test_bos_follows_the_config(tmp_path: Path) -> None:
    with_bos = tiny_with(tmp_path, add_bos_token=True)
    without = tiny_with(tmp_path, add_bos_token=False)
    unsaid = tiny_with(tmp_path, add_bos_token=None)  # then the post-processor of tokenizer.json decides: ours adds it
    assert with_bos.encode("a")[0] == unsaid.encode("a")[0] == 0
    assert without.encode("a") == with_bos.encode("a", bos=False) == with_bos.encode("a")[1:]
    assert without.encode("a", bos=True) == with_bos.encode("a")
    assert with_bos.encode_batch(["a", ""]) == [with_bos.encode("a"), [0]]


def test_bos_without_a_bos_token(tmp_path: Path) -> None:
    tokenizer = tiny_with(tmp_path, bos_token=None, add_bos_token=None)
    assert tokenizer.bos_id is None
    assert tokenizer.encode("a") == tokenizer.encode("a", bos=False)
    with pytest.raises(RequestError, match="names no bos_token"):
        tokenizer.encode("a", bos=True)


def test_special_tokens_in_text(tiny: Tokenizer) -> None:
    text = "<|user|>Hi<|end_of_sentence|>"
    ids = tiny.encode(text)
    assert ids[1] == tiny.token_to_id("<|user|>")
    assert ids[-1] == tiny.eos_id
    assert tiny.decode(ids) == "Hi"
    assert tiny.decode(ids[1:], skip_special=False) == text
    assert tiny.decode(tiny.encode(text, parse_special=False)) == text


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    backend = Backend.from_file(str(TINY / "tokenizer.json"))
    backend.enable_truncation(3)
    backend.enable_padding(length=16)
    tokenizer = Tokenizer.from_dir(write(tmp_path, backend.to_str(), add_bos_token=False))
    expected = Tokenizer.from_dir(TINY).encode("one two three four five", bos=False)
    assert len(expected) > 3
    assert tokenizer.encode("one two three four five") == expected
    assert tokenizer.encode("one two three four five", parse_special=False) == expected


def test_ids_out_of_range(tiny: Tokenizer) -> None:
    assert tiny.decode([8192, 100_000]) == ""  # a padded vocabulary may have ids without a token
    assert tiny.stream().push(100_000) == ""
    with pytest.raises(RequestError, match="-1 is out of range"):
        tiny.decode([5, -1])


def test_text_that_is_no_unicode(tiny: Tokenizer) -> None:
    text = b"ni\xf1o".decode("utf-8", "surrogateescape")  # what sys.argv holds for a Latin-1 argument
    with pytest.raises(RequestError, match="lone surrogates"):
        tiny.encode(text)


# ---------------------------------------------------------------------------------------------------------- streaming


@pytest.mark.parametrize("text", TEXTS)
def test_stream_shows_whole_characters(tiny: Tokenizer, text: str) -> None:
    ids = tiny.encode(text, parse_special=False)
    pieces, rest = streamed(tiny, ids)
    assert "".join(pieces) == tiny.decode(ids)
    assert rest == ""
    assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=300)
@given(ids=st.lists(st.integers(0, 8400) | st.integers(64, 320), max_size=60))
def test_stream_of_any_ids_is_decode(tiny: Tokenizer, ids: list[int]) -> None:
    """Ids 64..319 are the single bytes: mostly broken UTF-8, where both ways must give the same replacement marks."""
    pieces, rest = streamed(tiny, ids)
    assert "".join(pieces) + rest == tiny.decode(ids)


def test_stream_holds_back_a_split_character(tiny: Tokenizer) -> None:
    byte_ids = [tiny.token_to_id(c) for c in subject._byte_alphabet()]
    of_byte = dict(zip(subject._byte_alphabet().values(), byte_ids, strict=True))
    ids = [of_byte[b] for b in "中😀é".encode()]
    pieces, rest = streamed(tiny, ids)
    assert pieces == ["", "", "中", "", "", "", "😀", "", "é"]
    assert rest == ""
    pieces, rest = streamed(tiny, ids[:2])
    assert (pieces, rest) == (["", ""], "\ufffd")


def test_stream_is_ready_again_after_flush(tiny: Tokenizer) -> None:
    stream = tiny.stream()
    cut = tiny.encode("鑫", bos=False)[:1]
    assert stream.push(cut[0]) + stream.flush() == tiny.decode(cut)
    assert "".join(stream.push(i) for i in tiny.encode("again")) + stream.flush() == "again"


def test_stream_keeps_added_tokens_that_are_not_special(tmp_path: Path) -> None:
    backend = Backend.from_file(str(TINY / "tokenizer.json"))
    backend.add_tokens(["<think> 思"])  # holds a space and Chinese: no byte-level spelling
    tokenizer = Tokenizer.from_dir(write(tmp_path, backend.to_str()))
    ids = tokenizer.encode("a<think> 思b")
    assert 8192 in ids
    assert "".join(streamed(tokenizer, ids)[0]) == tokenizer.decode(ids) == "a<think> 思b"


@settings(max_examples=200)
@given(
    words=st.lists(st.sampled_from(["▁", "▁the", "▁cat", "s", "▁中", "文", ".", "é", "</s>", "😀", "龘"]), max_size=50)
)
def test_stream_of_metaspace_with_byte_fallback(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> None:
    tokenizer = sentencepiece_like(tmp_path_factory.mktemp("metaspace"))
    ids: list[int] = []
    for word in words:
        known = tokenizer.token_to_id(word)
        ids += [2 + b for b in word.encode()] if known is None else [known]
    pieces, rest = streamed(tokenizer, ids)
    assert "".join(pieces) + rest == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_stream_of_bytes_that_are_no_text_stays_bounded(tmp_path: Path) -> None:
    """A run of invalid fallback bytes is shown in pieces, not held for ever: else the work would grow quadratically."""
    tokenizer = sentencepiece_like(tmp_path)
    stream = tokenizer.stream()
    shown = "".join(stream.push(2 + 0xFF) for _ in range(500))
    assert shown == "\ufffd" * len(shown)
    assert len(shown) > 450
    assert shown + stream.flush() == tokenizer.decode([2 + 0xFF] * 500)


@given(ids=st.lists(st.integers(0, 7), max_size=40))
def test_stream_of_wordpiece(tmp_path_factory: pytest.TempPathFactory, ids: list[int]) -> None:
    tokenizer = wordpiece_like(tmp_path_factory.mktemp("wordpiece"))
    pieces, rest = streamed(tokenizer, ids)
    assert "".join(pieces) + rest == tokenizer.decode(ids)


def test_stream_decodes_in_linear_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts the ids handed to decode: a constant number per id in the window, none at all for byte-level."""
    decoded = 0
    whole = Tokenizer.decode

    def counting(self: Tokenizer, ids: list[int], skip_special: bool = True) -> str:
        nonlocal decoded
        decoded += len(ids)
        return whole(self, ids, skip_special)

    monkeypatch.setattr(Tokenizer, "decode", counting)
    streamed(Tokenizer.from_dir(TINY), random.Random(0).choices(range(8192), k=2000))
    assert decoded == 0
    tokenizer = sentencepiece_like(tmp_path)
    ids = random.Random(0).choices(range(258, 266), k=2000)
    streamed(tokenizer, ids)
    assert 0 < decoded <= 6 * len(ids)


# ------------------------------------------------------------------------------------------------------ chat template

TEMPLATE = """{{ bos_token }}{% for m in messages %}
{% if m.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('unknown role ' + m.role) }}{% endif %}
<|{{ m.role }}|>{{ m.content }}<|end_of_turn|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
MESSAGES = [{"role": "user", "content": "¿Quién <eres>?"}, {"role": "assistant", "content": "'Yo' & 我"}]


def test_chat_equals_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = tiny_with(tmp_path, chat_template=TEMPLATE)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.has_chat_template
    for prompt in (True, False):
        expected = theirs.apply_chat_template(MESSAGES, add_generation_prompt=prompt, return_dict=False)
        assert ours.chat(MESSAGES, add_generation_prompt=prompt) == expected
    assert expected.count(ours.bos_id) == 1


def test_chat_template_in_its_own_file_and_in_a_list(tmp_path: Path) -> None:
    inline = tiny_with(tmp_path, chat_template=TEMPLATE).chat(MESSAGES)
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    assert tiny_with(tmp_path, chat_template=named).chat(MESSAGES) == inline
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    assert tiny_with(tmp_path, chat_template="ignored: the file wins").chat(MESSAGES) == inline


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (TEMPLATE, [{"role": "robot", "content": "x"}], "unknown role robot"),
        (TEMPLATE, ["hello"], "message 0 is 'hello'"),
        (TEMPLATE, [{"content": "x"}], "message 0 is"),
        ("{{ messages[0].content + 1 }}", MESSAGES, "failed on these messages: TypeError"),
        ("{% for %}", MESSAGES, "cannot render"),
        ("{{ messages.__class__.__mro__ }}", MESSAGES, "cannot render"),  # the sandbox holds
        ("{{ messages.append(1) }}", MESSAGES, "cannot render"),
    ],
)
def test_chat_errors(tmp_path: Path, template: str, messages: list, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        tiny_with(tmp_path, chat_template=template).chat(messages)


def test_no_chat_template(tiny: Tokenizer) -> None:
    with pytest.raises(RequestError, match="plain continuation"):
        tiny.chat(MESSAGES)


# ------------------------------------------------------------------------------------------------------ broken files


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json in"):
        Tokenizer.from_dir(tmp_path)
    shutil.copy(TINY / "tokenizer.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"no tokenizer_config\.json in"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize("definition", ["", "{", "[]", '{"model": {"type": "None"}}'])
def test_broken_definition(tmp_path: Path, definition: str) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is no tokenizer"):
        Tokenizer.from_dir(write(tmp_path, definition))


def test_broken_config(tmp_path: Path) -> None:
    shutil.copy(TINY / "tokenizer.json", tmp_path)
    file = tmp_path / "tokenizer_config.json"
    for content, message in ((b"{", "not valid JSON"), (b"[1]", "holds a list"), (b"\xff\xfe", "cannot read")):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eos_token": "</nowhere>"}, "'</nowhere>', which is not in the vocabulary"),
        ({"bos_token": None}, "add_bos_token is true, but there is no bos_token"),
    ],
)
def test_config_that_contradicts_the_vocabulary(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        tiny_with(tmp_path, **changes)


def test_bos_token_as_an_object(tmp_path: Path) -> None:
    """Older files, DeepSeek's among them, write an AddedToken."""
    token = {"__type": "AddedToken", "content": "<|begin_of_sentence|>", "special": True}
    assert tiny_with(tmp_path, bos_token=token).encode("")[0] == 0
