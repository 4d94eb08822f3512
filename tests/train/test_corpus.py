"""Text files to token files: reading, tokenising, saving, and every way in which a file can be wrong."""

import dataclasses
import json
import lzma
import zipfile
from pathlib import Path

import numpy as np
import pytest

import dsv3.tokenizer
import dsv3.train.corpus as subject
from dsv3.errors import CapacityError, CheckpointError, ConfigError
from dsv3.tokenizer import Tokenizer
from dsv3.train.corpus import TokenStore, Workers, join, read_documents, read_verses, tokenize_files, tokenize_verses

TINY = Path(dsv3.tokenizer.__file__).parent / "assets" / "tiny"
CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
TEXTS = {
    "en": ["A title\nOnce upon a time.", "Another <|user|> tale.", "The end"],
    "zh": ["却说宝玉\n笑道。", "话说"],
}


@pytest.fixture(scope="module")
def tiny() -> Tokenizer:
    return Tokenizer.from_dir(TINY)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    files = {"en": tmp_path / "en.txt", "zh": tmp_path / "zh.txt.xz"}
    files["en"].write_text("\n<|doc|>\n".join(TEXTS["en"]) + "\n", encoding="utf-8")
    files["zh"].write_bytes(lzma.compress("\n<|doc|>\n".join(TEXTS["zh"]).encode()))
    return files


@pytest.fixture
def store(sources: dict[str, Path], tiny: Tokenizer) -> TokenStore:
    return tokenize_files(sources, tiny, progress=False)


def test_reads_plain_and_compressed(sources: dict[str, Path]) -> None:
    for language, path in sources.items():
        read = 0

        def count(n: int) -> None:
            nonlocal read
            read += n

        assert list(read_documents(path, count)) == TEXTS[language]
        assert read == path.stat().st_size


def test_reads_as_a_stream(tmp_path: Path) -> None:
    """A fault late in the file comes after the documents before it: nothing waits for the whole file."""
    file = tmp_path / "late.txt"
    file.write_bytes(b"one\n<|doc|>\ntwo\n<|doc|>\n\xff\n")
    documents = read_documents(file)
    assert [next(documents), next(documents)] == ["one", "two"]
    with pytest.raises(ConfigError, match="line 5, is not UTF-8"):
        next(documents)


def test_separators_around_nothing_and_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "odd.txt"
    file.write_bytes(b"<|doc|>\none\r\ntwo\r\n<|doc|>\n\n<|doc|>\nnot a <|doc|> line")
    assert list(read_documents(file)) == ["one\ntwo", "not a <|doc|> line"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, "cannot read the text file .*gone.txt: No such file"),
        ("empty.txt", b"", "holds no text"),
        ("only.txt", b"<|doc|>\n\n<|doc|>\n", "holds no text"),
        ("empty.txt.xz", lzma.compress(b""), "holds no text"),
        ("latin.txt", "niño".encode("latin-1"), "line 1, is not UTF-8"),
        ("cut.txt.xz", lzma.compress(b"some text " * 1000)[:-20], "damaged or cut short"),
        ("plain.txt.xz", b"some text", "damaged or cut short"),
    ],
)
def test_bad_text_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        list(read_documents(tmp_path / name))


def test_documents_are_bos_text_eos(store: TokenStore, tiny: Tokenizer) -> None:
    assert list(store.languages) == ["en", "zh"]
    for language, texts in TEXTS.items():
        documents = store[language]
        assert len(documents) == len(texts)
        assert documents.tokens.dtype == np.uint16
        assert documents.n_bytes.tolist() == [len(text.encode()) for text in texts]
        assert documents.total_bytes == sum(len(text.encode()) for text in texts)
        for d, text in enumerate(texts):
            ids = documents[d].tolist()
            assert ids == [tiny.bos_id, *tiny.encode(text, bos=False, parse_special=False), tiny.eos_id]
            assert tiny.decode(ids) == text


def test_the_progress_bar_goes_to_stderr(
    sources: dict[str, Path], tiny: Tokenizer, capfd: pytest.CaptureFixture
) -> None:
    tokenize_files(sources, tiny)
    out, err = capfd.readouterr()
    assert out == ""
    assert "tokenise zh: 100%" in err


def test_processes_give_the_same_documents(tmp_path: Path, tiny: Tokenizer) -> None:
    files = {language: tmp_path / f"{language}.txt" for language in ("en", "es", "zh")}
    for language, file in files.items():  # more documents than one call into the tokeniser takes
        file.write_text("\n<|doc|>\n".join(f"{language} {d}" for d in range(150)), encoding="utf-8")
    alone = tokenize_files(files, tiny, progress=False)
    with Workers(tiny, 2) as workers:
        shared = tokenize_files(files, tiny, progress=False, workers=workers)
        files["es"].write_bytes(b"\xff")
        with pytest.raises(ConfigError, match=r"es\.txt, line 1, is not UTF-8"):
            tokenize_files(files, tiny, progress=False, workers=workers)
    assert list(alone.languages) == list(shared.languages) == list(files)
    for language in files:
        assert tiny.decode(alone[language][149]) == f"{language} 149"
        for name in ("tokens", "starts", "n_bytes"):
            np.testing.assert_array_equal(getattr(alone[language], name), getattr(shared[language], name))
    with pytest.raises(ConfigError, match="0 workers"):
        Workers(tiny, 0)


def test_join(store: TokenStore) -> None:
    both = join([store["zh"], store["en"]])
    assert len(both) == 5
    assert both[1].tolist() == store["zh"][1].tolist()
    assert both[4].tolist() == store["en"][2].tolist()
    assert both.total_bytes == store["zh"].total_bytes + store["en"].total_bytes


def test_a_tokeniser_that_cannot_mark_documents(tmp_path: Path, sources: dict[str, Path]) -> None:
    (tmp_path / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="names no bos_token or no eos_token"):
        tokenize_files(sources, Tokenizer.from_dir(tmp_path), progress=False)


# --------------------------------------------------------------------------------------------------------- token file


@pytest.mark.parametrize("compress", [False, True])
def test_save_and_load(store: TokenStore, tmp_path: Path, compress: bool) -> None:
    store.save(tmp_path / "new" / "t.npz", compress=compress)
    loaded = TokenStore.load(tmp_path / "new" / "t.npz")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["t.npz"]
    assert (loaded.fingerprint, loaded.vocab_size, loaded.bos_id, loaded.eos_id) == (store.fingerprint, 8192, 0, 1)
    for language in TEXTS:
        for name in ("tokens", "starts", "n_bytes"):
            np.testing.assert_array_equal(getattr(loaded[language], name), getattr(store[language], name))
    with np.load(tmp_path / "new" / "t.npz") as plain:  # readable without this package
        np.testing.assert_array_equal(plain["zh.tokens"], store["zh"].tokens)


def test_an_interrupted_save_keeps_the_old_file(
    store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "t.npz"
    store.save(file)
    before = file.read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for fault, error, message in (
        (full_disk, CapacityError, "no room left on the disk for .*t.npz"),
        (interrupt, KeyboardInterrupt, None),
    ):
        monkeypatch.setattr(np.lib.format, "write_array", fault)
        with pytest.raises(error, match=message):
            store.save(file)
        assert file.read_bytes() == before
    assert list(tmp_path.glob("*.tmp")) == []


def test_a_place_that_cannot_be_written_to(store: TokenStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*t\.npz: (Not a directory|File exists)"):
        store.save(tmp_path / "file" / "t.npz")


@pytest.mark.parametrize("compress", [False, True])
def test_any_damage_is_noticed(store: TokenStore, tmp_path: Path, compress: bool) -> None:
    store.save(tmp_path / "t.npz", compress=compress)
    whole = (tmp_path / "t.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "t.npz") as archive:
        member = archive.getinfo("en.tokens.npy")
        at = member.header_offset + 30 + len(member.filename) + 20 + member.compress_size // 2
    file = tmp_path / "damaged.npz"
    for content in (whole[:100], whole[:-1], b"", b"text", whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"damaged\.npz"):
            TokenStore.load(file)
    with pytest.raises(CheckpointError, match="no token file"):
        TokenStore.load(tmp_path / "gone.npz")


def rewrite(store: TokenStore, file: Path, arrays: dict[str, np.ndarray], **meta: object) -> Path:
    """A token file of valid checksums whose content is wrong."""
    store.save(file.with_suffix(".whole"))
    with zipfile.ZipFile(file.with_suffix(".whole")) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            if name == "meta.json":
                target.writestr(name, json.dumps(json.loads(source.read(name)) | meta))
            elif (array := arrays.get(name.removesuffix(".npy"))) is not None:
                with target.open(name, "w") as member:
                    np.save(member, array)
            else:
                target.writestr(name, source.read(name))
    return file


def test_wrong_content(store: TokenStore, tmp_path: Path) -> None:
    tokens, starts = store["en"].tokens, store["en"].starts
    too_large = tokens.copy()
    too_large[3] = 9000
    cases: list[tuple[dict[str, np.ndarray], dict[str, object], str]] = [
        ({"en.tokens": too_large}, {}, "language en: token id 9000 is outside its vocabulary of 8192"),
        ({"en.tokens": tokens[:-1]}, {}, "document table"),
        ({"en.starts": starts[:-1]}, {}, "document table"),
        ({"en.starts": starts[[0, 2, 1, 3]]}, {}, "document table"),
        ({"en.tokens": tokens.astype(np.int32)}, {}, "en.tokens is int32"),
        ({}, {"format": "other-2"}, "format 'other-2', expected 'dsv3-tokens-1'"),
        ({}, {"languages": {"fr": {}}}, "fr.tokens"),
        ({}, {"languages": 3}, "not iterable"),
        ({}, {"per_epoch": {"fr": 1.0}}, "per_epoch names fr; the token file holds en, zh"),
        ({}, {"per_epoch": {"en": 0}}, "per_epoch .* expected numbers greater than 0"),
        ({}, {"per_epoch": {"en": "all"}}, "could not convert"),
        ({}, {"per_epoch": 3}, "not iterable"),
    ]
    for arrays, meta, message in cases:
        with pytest.raises(CheckpointError, match=message):
            TokenStore.load(rewrite(store, tmp_path / "wrong.npz", arrays, **meta))


def test_share_of_an_epoch(store: TokenStore, tmp_path: Path) -> None:
    assert store.per_epoch == {"en": 1.0, "zh": 1.0}
    partly = dataclasses.replace(store, per_epoch={"zh": 0.25})
    partly.save(tmp_path / "t.npz")
    assert TokenStore.load(tmp_path / "t.npz").per_epoch == {"en": 1.0, "zh": 0.25}
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="greater than 0"):
            dataclasses.replace(store, per_epoch={"zh": wrong})
    with pytest.raises(ConfigError, match="names fr, it; the token file holds en, zh"):
        dataclasses.replace(store, per_epoch={"it": 1, "fr": 1})


def test_a_file_from_before_there_were_shares_still_loads(store: TokenStore, tmp_path: Path) -> None:
    store.save(tmp_path / "new.npz")
    with zipfile.ZipFile(tmp_path / "new.npz") as source, zipfile.ZipFile(tmp_path / "old.npz", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "meta.json":
                meta = json.loads(content)
                del meta["per_epoch"]
                content = json.dumps(meta).encode()
            target.writestr(name, content)
    old = TokenStore.load(tmp_path / "old.npz")
    assert old.per_epoch == {"en": 1.0, "zh": 1.0}
    np.testing.assert_array_equal(old["zh"].tokens, store["zh"].tokens)


def test_check(store: TokenStore, tiny: Tokenizer, tmp_path: Path) -> None:
    store.check(vocab_size=8192, tokenizer=tiny)
    store.check(vocab_size=8320)  # a padded model vocabulary
    with pytest.raises(ConfigError, match="8192 ids, the model has vocab_size 4096"):
        store.check(vocab_size=4096)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((TINY / name).read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="made with another tokeniser"):
        store.check(tokenizer=Tokenizer.from_dir(tmp_path))
    with pytest.raises(ConfigError, match="no language 'fr' in the token file: it holds en, zh"):
        store["fr"]


# ------------------------------------------------------------------------------------------------------------- verses


def test_verses(tmp_path: Path, tiny: Tokenizer) -> None:
    rows = [f"Ruth {c}:{v}\theldout\ten {c}:{v}\t经{v}" for c in (1, 2) for v in range(1, 8)]
    rows.insert(3, "Genesis 1:1\ttrain\tno\t不")
    file = tmp_path / "parallel.tsv.xz"
    file.write_bytes(lzma.compress("\n".join(["ref\tsplit\ten\tzh", *rows, ""]).encode()))
    chapters = read_verses(file, ["en", "zh"])
    assert chapters["en"][0] == "en 1:1 en 1:2 en 1:3 en 1:4 en 1:5\nen 1:6 en 1:7"
    assert chapters["zh"] == ["经1经2经3经4经5\n经6经7"] * 2
    assert [len(d) for d in tokenize_verses(file, ["en", "zh"], tiny).languages.values()] == [2, 2]
    with pytest.raises(ConfigError, match="no verse with split 'test'"):
        read_verses(file, ["en"], split="test")
    with pytest.raises(ConfigError, match=r"cannot read the verses .* KeyError: 'fr'"):
        read_verses(file, ["fr"])


@pytest.mark.skipif(not CORPUS.exists(), reason="the corpus is not part of the repository")
def test_the_corpus_itself(tmp_path: Path, tiny: Tokenizer) -> None:
    """The validation files give the counts of the corpus's own table, at more than three bytes a token."""
    documents = {"en": 61, "es": 52, "zh": 55}
    store = tokenize_files({name: CORPUS / f"{name}.val.txt.xz" for name in documents}, tiny, progress=False)
    assert {name: len(docs) for name, docs in store.languages.items()} == documents
    for docs in store.languages.values():
        assert docs.total_bytes / len(docs.tokens) > 3.1
    assert len(read_verses(CORPUS / "parallel.tsv.xz", ["es"])["es"]) == 4 + 4 + 16


def run_command(corpus: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, TokenStore]:
    table = b"ref\tsplit\ten\tzh\nRuth 1:1\theldout\tNow it came\t\xe5\xbd\x93\n"
    (corpus / "parallel.tsv.xz").write_bytes(lzma.compress(table))
    monkeypatch.setattr("sys.argv", ["corpus", str(corpus), str(corpus / "out"), *options])
    subject.main()
    return {file.stem: TokenStore.load(file) for file in (corpus / "out").iterdir()}


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Tokenizer) -> None:
    for split in ("train", "val"):
        (tmp_path / f"en.{split}.txt.xz").write_bytes(lzma.compress(f"text to {split}".encode()))
    stores = run_command(tmp_path, monkeypatch, "--languages", "en", "--compress", "--workers", "1")
    texts = {name: tiny.decode(store["en"][0]) for name, store in stores.items()}
    assert texts == {"train": "text to train", "val": "text to val", "heldout": "Now it came"}
    assert stores["train"].per_epoch == {"en": 1.0}  # too little text for a row of recall


def test_command_with_recall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, tiny: Tokenizer
) -> None:
    texts = {"en": "Once upon a time there was a king.\n", "zh": "从前有一个国王。\n"}
    for language, line in texts.items():
        for split, n in (("train", 40), ("val", 2)):
            content = f"\n{subject.SEPARATOR}\n".join([line * 100] * n)
            (tmp_path / f"{language}.{split}.txt.xz").write_bytes(lzma.compress(content.encode()))
    options = "--languages en zh --recall 0.1 --recall-epochs 3 --recall-length 256 --workers 2".split()
    stores = run_command(tmp_path, monkeypatch, *options)
    assert list(stores["val"].languages) == list(stores["heldout"].languages) == ["en", "zh"]
    train = stores["train"]
    assert list(train.languages) == ["en", "zh", "recall-en", "recall-zh"]
    for language in ("en", "zh"):
        recall = train[f"recall-{language}"]
        assert train.per_epoch[f"recall-{language}"] == pytest.approx(1 / 3)
        assert set(np.diff(recall.starts)) == {256}
        rows = len(train[language].tokens) // 256
        assert (len(recall) - 1) / 3 == round(rows / 9)
    assert "？" in tiny.decode(train["recall-zh"][0])
    out, err = capfd.readouterr()
    assert out == ""
    assert f"recall-en: {len(train['recall-en'])} documents" in err
    stores = run_command(tmp_path, monkeypatch, *options, "--recall", "0")
    assert list(stores["train"].languages) == ["en", "zh"]
