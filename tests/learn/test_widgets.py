"""Widgets without a browser: what they hold, what they show, what they do when something is wrong."""

import asyncio
import sys
import time
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import ipywidgets
import pytest
import torch
from IPython.display import Image, Markdown
from matplotlib.figure import Figure

from dsv3.engine import LLM, SamplingParams
from dsv3.errors import RequestError
from dsv3.learn import widgets
from dsv3.learn.widgets import Explorer, LiveLoad, PromptBox, explore

PNG = b"\x89PNG"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def draw(k: int = 1, width: float = 0.5) -> Figure:
    if k == 3:
        raise ValueError("k must not be <3>")
    figure = Figure(figsize=(1, 1))
    figure.subplots().bar(range(k), [width] * k)
    return figure


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is put into the output, in order."""
    found: list[Any] = []
    monkeypatch.setattr("IPython.display.display", found.append)
    return found


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("tiny", device="cpu", max_seq_len=256)


# --- explore --------------------------------------------------------------------------------------------------------


def test_a_finished_picture_comes_first_then_the_sliders(shown: list[Any]) -> None:
    explorer = explore(draw, k=(1, 8), width=(0.1, 0.9))
    picture, sliders = shown
    assert isinstance(picture, Image)
    assert picture.data[:4] == PNG
    assert sliders is explorer
    bundle = explorer._repr_mimebundle_()
    assert bundle["text/plain"] == "Sliders: k, width. They appear where the notebook runs."
    assert WIDGET_VIEW in bundle


def test_setting_a_slider_changes_the_picture(shown: list[Any]) -> None:
    explorer = explore(draw, k=(1, 8))
    before = explorer.image
    assert explorer._picture.widget.layout.display == "none"  # the same as the static figure above
    assert explorer.set(k=4) is explorer
    assert explorer.values == {"k": 4}
    assert explorer.image[:4] == PNG
    assert explorer.image != before
    assert explorer._picture.widget.layout.display is None
    assert len(shown) == 2  # nothing new in the output: the picture changed in its place


def test_several_values_are_drawn_once(shown: list[Any]) -> None:
    explorer = explore(draw, k=(1, 8), width=(0.1, 0.9))
    before = explorer.drawn
    explorer.set(k=5, width=0.7)
    assert explorer.drawn == before + 1


def test_a_hand_on_the_slider_is_seen(shown: list[Any]) -> None:
    explorer = explore(draw, k=(1, 8))
    before = explorer.image
    time.sleep(2 * widgets.INTERVAL + 0.1)
    explorer.sliders["k"].value = 6
    assert explorer.image != before


def test_a_fast_hand_is_drawn_where_it_stops(shown: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widgets, "INTERVAL", 0.5)  # longer than a busy machine takes to move a slider forty times
    explorer = explore(lambda k: draw(k + 3), k=(1, 50))
    drawn: list[int] = []

    async def drag() -> None:
        explorer.set(k=1)
        start = explorer.drawn
        for k in range(2, 40):
            explorer.sliders["k"].value = k
        await asyncio.sleep(1.0)
        drawn.append(explorer.drawn - start)

    asyncio.run(drag())
    assert drawn == [1]
    assert explorer.image == explore(lambda k: draw(k + 3), k=(1, 50)).set(k=39).image


def test_what_draw_raises_appears_in_place(shown: list[Any]) -> None:
    explorer = explore(draw, k=(1, 8))
    before = explorer.image
    explorer.set(k=3)
    assert explorer.message == "ValueError: k must not be <3>"
    assert "&lt;3&gt;" in explorer._message.value
    assert explorer.image == before
    explorer.set(k=4)
    assert explorer.message == explorer._message.value == ""


def test_a_drawing_that_returns_no_figure_is_told(shown: list[Any]) -> None:
    explorer = explore(lambda k: k, k=(1, 8))
    assert "draw returned int; expected a matplotlib Figure" in explorer.message
    assert shown == [explorer]


def test_static_says_where_to_start(shown: list[Any]) -> None:
    explorer = explore(draw, static={"k": 5}, k=(1, 8))
    assert explorer.values == {"k": 5}
    assert shown[0].data == explorer.image
    other = draw(7)
    explore(draw, static=other, k=(1, 8))
    assert shown[2].data != explorer.image


def test_a_description_is_the_alternative_text(shown: list[Any]) -> None:
    explore(draw, describe=lambda k: f"{k} bars", static={"k": 2}, k=(1, 8))
    picture, line, _ = shown
    assert picture.alt == "2 bars"
    assert isinstance(line, Markdown)
    assert line.data == "2 bars"


def test_the_line_below_changes_with_the_picture(shown: list[Any]) -> None:
    explorer = explore(draw, describe=lambda k: f'{k} bars < "9"', k=(1, 8))
    picture = explorer.widget.children[-1]
    assert 'alt="1 bars &lt; &quot;9&quot;"' in picture.value
    explorer.set(k=4)
    assert 'alt="4 bars &lt; &quot;9&quot;"' in picture.value
    assert b64encode(explorer.image).decode() in picture.value
    assert ">4 bars &lt; " in picture.value
    before = picture.value
    explorer.set(k=3)  # draw raises: the last good picture stays, and so does what is said of it
    assert picture.value == before


def test_without_a_description_nothing_is_said(shown: list[Any]) -> None:
    picture = explore(draw, k=(1, 8)).set(k=2).widget.children[-1]
    assert 'alt=""' in picture.value
    assert "figcaption" not in picture.value


def test_kinds_of_sliders(shown: list[Any]) -> None:
    made = explore(
        lambda **values: draw(), a=(1, 5), b=(0.0, 1.0, 0.25), c=["x", "y"], d=ipywidgets.Checkbox(True)
    ).sliders
    kinds = {name: type(slider).__name__ for name, slider in made.items()}
    assert kinds == {"a": "IntSlider", "b": "FloatSlider", "c": "SelectionSlider", "d": "Checkbox"}
    assert made["b"].step == 0.25
    assert [slider.description for slider in made.values()] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("what", [5, (1, 2, 3, 4), (5, 1), (0, 1, 0), [], "ab", ipywidgets.VBox()])
def test_sliders_that_cannot_be_made(what: Any) -> None:
    with pytest.raises(RequestError, match="slider 'k'"):
        Explorer(draw, {"k": what})


@pytest.mark.parametrize(
    ("values", "message"),
    [({"kk": 3}, "did you mean 'k'"), ({"k": 99}, "from 1 to 8"), ({"k": "two"}, "cannot be 'two'")],
)
def test_values_that_cannot_be_set(shown: list[Any], values: dict[str, Any], message: str) -> None:
    explorer = explore(draw, k=(1, 8))
    with pytest.raises(RequestError, match=message):
        explorer.set(**values)
    assert explorer.values == {"k": 1}


def test_figures_of_pyplot_are_closed(shown: list[Any]) -> None:
    from matplotlib import pyplot

    def with_pyplot(k: int) -> Any:
        figure, ax = pyplot.subplots(figsize=(1, 1))
        ax.plot(range(k))
        return figure

    explorer = explore(with_pyplot, k=(2, 9))
    for k in range(3, 9):
        explorer.set(k=k)
    assert pyplot.get_fignums() == []


def test_without_ipywidgets_the_figure_is_there_with_a_line(shown: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert explore(draw, static={"k": 2}, k=(1, 8), width=ipywidgets.FloatSlider(0.4)) is None
    picture, line = shown
    assert picture.data[:4] == PNG
    assert "pip install 'dsv3[learn]'" in line.data


def test_labels_speak_the_readers_language(shown: list[Any]) -> None:
    from dsv3.learn.labels import language

    explorer = explore(draw, k=(1, 8))
    with language("es"):
        assert explorer._repr_mimebundle_()["text/plain"].startswith("Controles: k.")


# --- a prompt and its experts ---------------------------------------------------------------------------------------


def test_a_typed_text_is_tokenised_and_coloured(llm: LLM) -> None:
    box = PromptBox(llm, "Había una vez 从前")
    assert box.html.count("title=") == len(llm.tokenizer.encode("Había una vez 从前"))
    assert "".join(box._tokens).endswith("从前")
    experts = llm.config.n_activated_experts
    assert box.html.count("background: #") >= experts * len(box._tokens)
    box._text.value = "Once"
    assert "Había" not in box.html
    assert "".join(box._tokens).endswith("Once")


def test_layers_differ_and_text_stays(llm: LLM) -> None:
    box = PromptBox(llm, "Once upon a time")
    first = box.html
    box.set(layer=5)
    assert box.html != first
    assert box._text.value == "Once upon a time"
    with pytest.raises(RequestError, match="layer 0 has no experts; layers 1 to 5 have"):
        box.set(layer=0)


def test_the_strip_shows_what_the_engine_routes(llm: LLM) -> None:
    from dsv3 import capture

    box = PromptBox(llm, "Once upon a time", layer=3)
    with capture(llm.model, "layers.3.ffn.gate.indices_TK") as records, torch.inference_mode():
        llm.model(torch.tensor([llm.tokenizer.encode("Once upon a time")]))
    (indices_TK,) = records["layers.3.ffn.gate.indices_TK"]
    assert box._routes[3][0] == indices_TK.tolist()


def test_what_cannot_be_read_is_said_in_place(llm: LLM) -> None:
    box = PromptBox(llm)
    assert box.html == ""
    box.set(text="word " * 600)
    assert "the model reads 256" in box.html
    box.set(text="<b>")
    assert "<b>" not in box.html
    assert "&lt;" in box.html
    assert box._repr_mimebundle_()["text/html"] == box.html


def test_a_model_without_tokenizer_or_experts_is_refused(llm: LLM, small_config: Callable[..., Any]) -> None:
    from dsv3 import Transformer

    model = Transformer(small_config("v3"), dtype=torch.float32)
    with pytest.raises(RequestError, match="no tokenizer"):
        PromptBox(LLM.from_model(model, max_seq_len=16), "a")


# --- the load while the model writes --------------------------------------------------------------------------------


def test_the_load_is_drawn_while_the_model_writes(llm: LLM) -> None:
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    live = LiveLoad(llm, "Once upon a time", params, every=8)
    text = live.run()
    assert text == llm.generate("Once upon a time", params)[0].text
    assert live.drawn == 3  # after 8, 16 and at the end
    assert live.image[:4] == PNG
    prompt = len(llm.tokenizer.encode("Once upon a time"))
    routed = (prompt + 20 - 1) * llm.config.n_activated_experts  # the last token is written, not read
    assert {int(load.counts_E.sum()) for load in live.loads if load.name.startswith("layer")} == {routed}
    assert live._words.value.count("<") == 2
    assert "after 20 tokens: the busiest is" in live.widget.children[-1].value


def test_it_can_be_stopped_and_started_again(llm: LLM) -> None:
    live = LiveLoad(llm, "Once upon a time", SamplingParams(max_tokens=200, ignore_eos=True), every=2)
    live._start_button.click()
    assert not live._stop_button.disabled or live.wait(0)
    deadline = time.monotonic() + 20
    while live.drawn < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    live._stop_button.click()
    assert live.wait(20)
    assert 2 <= live.n_tokens < 200
    assert live._stop_button.disabled
    assert not live._start_button.disabled
    assert not llm.engine.scheduler.running
    live.params = SamplingParams(max_tokens=4, ignore_eos=True)
    live.run()
    assert live.n_tokens == 4


def test_a_request_that_cannot_be_served_is_said_in_place(llm: LLM) -> None:
    live = LiveLoad(llm, "", SamplingParams(max_tokens=2))
    assert live.run() == ""
    assert "the prompt is empty" in live._words.value
    assert not live._start_button.disabled
    with pytest.raises(RequestError, match="every is 0"):
        LiveLoad(llm, "a", every=0)


def test_it_listens_only_while_it_writes(llm: LLM) -> None:
    LiveLoad(llm, "Once", SamplingParams(max_tokens=2)).run()
    assert all(not gate.tap.listeners for gate in llm.model.modules() if hasattr(gate, "tap"))


def test_other_widgets_name_the_missing_package(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    for make in (lambda: PromptBox(llm, "a"), lambda: LiveLoad(llm, "a")):
        with pytest.raises(RequestError, match=r"ipywidgets.*pip install"):
            make()
