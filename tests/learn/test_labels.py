"""Labels in three languages: catalogues whole, fonts that draw them, languages that do not disturb each other."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
import torch
from matplotlib.figure import Figure

from dsv3.errors import RequestError
from dsv3.expert_load import LayerLoad
from dsv3.learn import labels
from dsv3.learn.labels import current_language, language, set_language, tr
from dsv3.viz import describe_expert_load, draw_expert_load
from dsv3.viz.theme import png, themed

LOADS = {"x": [LayerLoad("layer 3", torch.tensor([1, 2, 3, 4])), LayerLoad("MTP 0", torch.tensor([4, 0, 0, 4]))]}


@pytest.fixture(autouse=True)
def english_again() -> Iterator[None]:
    yield
    set_language("en")


def test_a_figure_speaks_the_language_around_it() -> None:
    heading = {}
    for code in labels.LANGUAGES:
        with language(code):
            figure = draw_expert_load(LOADS)
        heading[code] = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert heading == {"en": ["layer 3", "MTP 0"], "es": ["capa 3", "MTP 0"], "zh": ["第 3 层", "MTP 0"]}


def test_descriptions_too() -> None:
    with language("es"):
        assert describe_expert_load(LOADS).startswith("Mapa de calor de la carga por experto")
    assert describe_expert_load(LOADS).startswith("Heat map of expert load")


def test_set_language_holds_outside_blocks_and_in_other_threads() -> None:
    set_language("es")
    heard: list[str] = []
    thread = threading.Thread(target=lambda: heard.append(current_language()))
    thread.start()
    thread.join()
    with language("zh"):
        assert current_language() == "zh"
    assert [*heard, current_language()] == ["es", "es"]


def test_two_tasks_speak_two_languages() -> None:
    async def speak(code: str) -> list[str]:
        heard = []
        with language(code):
            for _ in range(3):
                await asyncio.sleep(0)
                heard.append(tr("expert"))
        return heard

    async def both() -> list[list[str]]:
        return await asyncio.gather(speak("es"), speak("zh"))

    assert asyncio.run(both()) == [["experto"] * 3, ["专家"] * 3]


def test_an_unknown_label_is_english_and_an_unknown_language_an_error() -> None:
    with language("zh"):
        assert tr("never translated {n}", n=3) == "never translated 3"
    with pytest.raises(RequestError, match="unknown language 'fr'"):
        set_language("fr")


@pytest.mark.parametrize("code", ["es", "zh"])
def test_every_label_can_be_drawn(code: str, caplog: pytest.LogCaptureFixture) -> None:
    """A missing glyph is a warning, and warnings are errors here; mathtext's go to its log."""
    words = labels.catalogue(code)
    assert len(words) > 5

    @themed
    def draw() -> Figure:
        figure = Figure()
        for i, label in enumerate([*words.values(), "$10^{-3}$"]):
            figure.text(0.0, i / len(words), label.replace("{", "(").replace("}", ")"))
        axes = figure.subplots()
        axes.set(xscale="log", yscale="symlog", ylim=(-10, 10), xlabel=next(iter(words.values())))
        return figure

    with language(code):
        assert png(draw())
    assert caplog.records == []


def test_a_missing_glyph_is_noticed() -> None:
    @themed
    def draw() -> Figure:
        figure = Figure()
        figure.text(0, 0, "龘")
        return figure

    with language("zh"):
        figure = draw()
    with pytest.warns(UserWarning, match="Glyph .* missing from font"):
        png(figure)


def test_english_and_spanish_figures_do_not_load_the_chinese_font() -> None:
    with language("es"):
        figure = draw_expert_load(LOADS)
    assert figure.axes[0].title.get_fontfamily() == ["DejaVu Sans"]
    with language("zh"):
        figure = draw_expert_load(LOADS)
    assert figure.axes[0].title.get_fontfamily() == ["DejaVu Sans", "dsv3 Sans SC"]


def test_used_labels_are_found_where_they_are_used() -> None:
    found = labels.used_labels([("a.py", 'tr("one")\nx.tr("two " "three", n=1)'), ("b.py", 'tr("one")')])
    assert found == {"one": ["a.py", "b.py"], "two three": ["a.py"]}
    with pytest.raises(RequestError, match=r"a\.py has tr\(name\); a label must be a literal"):
        labels.used_labels([("a.py", "tr(name)")])


@pytest.mark.parametrize(
    ("label", "translation", "said"),
    [
        ("{n} tokens", "{m} tokens", "placeholders"),
        ("{n} tokens", "tokens", "placeholders"),
        ("{n} tokens", "{n tokens", "unbalanced braces"),
        ("rate", "$r$ 率", "mathtext"),
    ],
)
def test_label_problems(label: str, translation: str, said: str) -> None:
    assert said in next(labels.label_problems(label, translation, "zh"))
    assert list(labels.label_problems("{n} of {m}", "{m:.1f} 中的 {n}", "zh")) == []
