"""From an edited English page to checked pages in three languages, and the project's own book is sound."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsv3.errors import RequestError
from dsv3.learn import book, catalogue, pages
from tests.conftest import ROOT
from tests.learn.small_book import CELLS, CHAPTER, notebook, run_as_it_is, small_book, translate, write_source

SPANISH = {"small-title": "# Una página", "small-text": "Es corta.", "small-end": "Fin."}


def markdown(where: book.Book, language: str) -> dict[str, str]:
    return pages.markdown_cells(pages.read(where.page(language, CHAPTER)))


@pytest.mark.parametrize("language", ["en", "es", "zh"])
def test_the_walkthrough_is_sound(language: str) -> None:
    assert list(book.check(book.Book(ROOT), [language])) == []


@pytest.mark.parametrize("language", ["en", "es", "zh"])
def test_each_readme_has_the_table_that_the_command_prints(language: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert book.main(["status", "--markdown", language, "--root", str(ROOT)]) == 0
    table = capsys.readouterr().out.rstrip("\n")
    assert book.TABLE.findall(book.Book(ROOT).readme(language).read_text(encoding="utf-8")) == [table]


def test_a_readme_with_an_old_table_is_noticed_and_mended(tmp_path: Path) -> None:
    where = small_book(tmp_path)
    readme = where.readme("es")
    readme.write_text("Antes.\n\n<!-- translations -->\n<!-- /translations -->\n\nDespués.\n", encoding="utf-8")
    assert "README_ES.md has an old table of the translations: run `readme`" in list(book.check(where, ["es"]))
    assert book.write_tables(where, ["en", "es"]) == ["README_ES.md: a new table of the translations"]
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("Antes.\n")
    assert text.endswith("\nDespués.\n")
    assert "| idioma | celdas al día | anteriores al original | sin traducir |" in text
    assert "| español | 0% | 0 | 3 |" in text
    assert not book.table_is_old(where, "es")
    translate(where, "es", SPANISH)
    one = dataclasses.replace(where, only=(CHAPTER,))
    assert book.table_is_old(one, "es")
    assert book.write_tables(one, ["es"])
    assert "| español | 100% | 0 | 0 |" in readme.read_text(encoding="utf-8")


def test_from_source_to_sound_page(tmp_path: Path) -> None:
    where = small_book(tmp_path)
    translate(where, "es", SPANISH)
    assert book.build(where, ["es"]) == [f"built es/{CHAPTER}"]
    assert book.build(where, ["es"]) == [], "building again leaves no difference"
    assert markdown(where, "es") == SPANISH
    page = pages.read(where.page("es", CHAPTER))
    assert 'set_language("es")' in pages.code_cells(page)[0].source
    assert any("not been run" in problem for problem in book.check(where, ["es"]))
    run_as_it_is(where, "es")
    assert book.build(where, ["es"]) == [], "outputs are kept"
    small_labels_only = [problem for problem in book.check(where, ["es"]) if "catalogue of labels" not in problem]
    assert small_labels_only == []


def test_a_changed_cell_makes_a_page_that_says_it_is_older(tmp_path: Path) -> None:
    where = small_book(tmp_path)
    translate(where, "es", SPANISH)
    write_source(where, notebook({**CELLS, "small-text": "It is shorter.", "small-new": "And new."}))
    assert "1 new, 1 changed, 0 vanished" in book.extract(where, ["es"])[0]
    book.build(where, ["es"])
    page = markdown(where, "es")
    assert next(iter(page)) == pages.NOTE_ID
    assert "anterior a su original" in page[pages.NOTE_ID]
    assert ": 2." in page[pages.NOTE_ID]
    assert page["small-text"] == "Es corta.", "the translation of the previous text stands until there is a new one"
    assert page["small-new"] == "And new."
    problems = list(book.check(where, ["es"]))
    assert any("small-text is fuzzy" in problem for problem in problems)
    assert any("small-new has no translation" in problem for problem in problems)
    (fresh,) = book.status(where, ["es"])
    assert (fresh.cells, fresh.fresh, fresh.stale, fresh.missing) == (4, 2, 1, 1)
    assert fresh.line() == "es 50%, 1 stale, 1 missing, of 4 cells"
    assert "| español | 50% | 1 | 1 |" in book.status_table([fresh])


def test_edited_pages_are_noticed(tmp_path: Path) -> None:
    where = small_book(tmp_path)
    translate(where, "es", SPANISH)
    book.build(where, ["es"])
    run_as_it_is(where, "es")
    path = where.page("es", CHAPTER)
    sound = path.read_text(encoding="utf-8")
    for old, new, said in (("Es corta", "Es muy corta", "not what `build` makes"), ("1 + 1", "1+1", "code differs")):
        path.write_text(sound.replace(old, new), encoding="utf-8")
        assert any(said in problem for problem in book.check(where, ["es"]))
    stray = where.page("es", "02_gone")
    stray.write_text(sound, encoding="utf-8")
    assert any("02_gone.ipynb has no chapter" in problem for problem in book.check(where, ["es"]))
    assert f"removed es/{stray.stem}: no such chapter" in book.build(where, ["es"])


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), include_characters="\n"), max_size=60)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WORDS.filter(str.strip), min_size=1, max_size=4))
def test_a_translation_that_repeats_its_source_builds_its_source(tmp_path: Path, texts: list[str]) -> None:
    cells = {f"small-{i}": text for i, text in enumerate(texts)}
    where = book.Book(tmp_path)
    write_source(where, notebook(cells))
    for language in ("es", "zh"):
        path = where.catalogue(language, CHAPTER)
        po = catalogue.read(path, language)
        catalogue.merge(po, cells)
        pages.write_text(path, catalogue.text(po))
        translate(where, language, cells)
        built = book.built(where, language, CHAPTER, keep_outputs=False)
        assert pages.markdown_cells(built) == cells
        assert pages.NOTE_ID not in [cell.id for cell in built.cells]


def test_labels_that_are_new_or_unused_are_noticed(tmp_path: Path) -> None:
    where = small_book(tmp_path)
    write_source(where, notebook(CELLS, code='from dsv3.learn.labels import tr\n\nprint(tr("A new label {n}", n=2))'))
    assert any(
        "has no 'A new label {n}' (notebooks/en/01_small.ipynb)" in problem for problem in book.check(where, ["zh"])
    )
    assert "zh: labels" in book.extract(where, ["zh"])
    assert any("no finished translation of 'A new label {n}'" in problem for problem in book.check(where, ["zh"]))
    write_source(where, notebook(CELLS))
    assert any("'A new label {n}', which nothing uses" in problem for problem in book.check(where, ["zh"]))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    where = small_book(tmp_path)
    monkeypatch.setattr(book, "Book", lambda root, only: dataclasses.replace(where, only=only))
    assert book.main(["build", "--language", "es", "--root", str(tmp_path)]) == 0
    assert book.main(["check", "--language", "es", "--root", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "small-title has no translation" in said.err
    assert said.out == ""
    assert book.main(["status", "--language", "es"]) == 0
    assert capsys.readouterr().out == "es 0%, 0 stale, 3 missing, of 3 cells\n"
    assert book.main(["execute", "--chapter", "99_none"]) == 1
    assert "there is no chapter '99_none'; there are 01_small" in capsys.readouterr().err


def test_one_chapter_at_a_time(tmp_path: Path) -> None:
    where = small_book(tmp_path)
    pages.write_text(where.page("en", "02_more"), pages.text(notebook({"more-title": "# More"})))
    one = dataclasses.replace(where, only=(CHAPTER,))
    book.extract(one, ["es"])
    book.build(one, ["es"])
    assert where.page("es", CHAPTER).exists()
    assert not where.page("es", "02_more").exists()
    assert not any("02_more" in problem for problem in book.check(one, ["es"]))
    assert any("02_more" in problem for problem in book.check(where, ["es"]))


def test_a_folder_without_notebooks(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there are no notebooks"):
        book.Book(tmp_path).chapters()
