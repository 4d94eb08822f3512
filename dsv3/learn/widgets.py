"""Figures that can be turned: a finished picture first, then sliders for those who run the notebook.

``explore`` puts a static figure into the output, which prints and is seen on a code host, and below it sliders that
feed a picture through ``observe``. Everything can be driven without a browser: ``explorer.set(k=4)``, then
``explorer.image``. ipywidgets is imported in this module only, when the first widget is made.
"""

import asyncio
import contextvars
import difflib
import struct
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from dsv3.errors import Dsv3Error, RequestError
from dsv3.expert_load import LayerLoad, loads_from_records
from dsv3.learn.prose import verbatim
from dsv3.probe import capture

if TYPE_CHECKING:
    from dsv3.engine import LLM, SamplingParams
    from dsv3.tokenizer import Tokenizer

Draw = Callable[..., Any]
"""``draw(**parameters) -> Figure``."""

INSTALL = "pip install 'dsv3[learn]'"

INTERVAL = 0.05
"""Seconds between two drawings at least; a slow drawing waits as long again as it took."""


def _need(package: str) -> Any:
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        missing = (error.name or package).split(".")[0]
        raise RequestError(f"this needs the package {missing}, which is not installed: {INSTALL}") from None


def _tr() -> Callable[..., str]:
    """``tr`` of the figures; through a function, since matplotlib is optional too."""
    return _need("dsv3.viz.labels").tr


def _png(figure: Any, description: str = "") -> bytes:
    """The picture, after which the figure is let go: pyplot, where a drawing used it, keeps figures alive."""
    if not hasattr(figure, "savefig"):
        raise RequestError(f"draw returned {type(figure).__name__}; expected a matplotlib Figure")
    try:
        return _need("dsv3.viz.theme").png(figure, description=description)
    finally:
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None:
            pyplot.close(figure)


def _show(picture: bytes, description: str) -> None:
    display = _need("IPython.display")
    display.display(display.Image(picture, alt=description or None))
    if description:
        display.display(display.Markdown(verbatim(description)))


class _Picture:
    """A picture that changes, and below it the line that says what it shows, which is its alternative text as well.

    Not ipywidgets' Image: that has no alternative text, and does not appear at all once it is given a tooltip.
    """

    def __init__(self, *, hidden: bool = False) -> None:
        self.widget = _need("ipywidgets").HTML()
        self.widget.layout.display = "none" if hidden else None
        self.png = b""

    def put(self, png: bytes, description: str) -> None:
        self.png = png
        width, height = struct.unpack(">II", png[16:24])  # known before it is decoded, so the page does not jump
        source = f"data:image/png;base64,{b64encode(png).decode()}"
        style = "max-width: 100%; height: auto"
        alt = escape(description, quote=True)
        image = f'<img src="{source}" alt="{alt}" width="{width}" height="{height}" decoding="sync" style="{style}">'
        line = f'<figcaption style="line-height: 1.5">{escape(description)}</figcaption>' if description else ""
        self.widget.value = f'<figure style="margin: 0">{image}{line}</figure>'

    def reveal(self) -> None:
        self.widget.layout.display = None


# --- sliders under a figure -----------------------------------------------------------------------------------------


class Explorer:
    """Sliders and the picture they turn. ``set`` moves them, ``values`` are where they stand, ``image`` is the PNG.

    What ``draw`` raises appears in ``message``, in place, and the last good picture stays. ``drawn`` counts drawings.
    """

    def __init__(self, draw: Draw, sliders: Mapping[str, Any], describe: Callable[..., str] | None = None) -> None:
        ipywidgets = _need("ipywidgets")
        self._draw_figure, self._describe = draw, describe
        self.sliders = {name: _slider(ipywidgets, name, what) for name, what in sliders.items()}
        # Hidden until it differs from the static figure above it.
        self._picture = _Picture(hidden=True)
        self._message = ipywidgets.HTML()
        self.widget = ipywidgets.VBox([*self.sliders.values(), self._message, self._picture.widget])
        self.message = ""
        self.drawn = 0
        self._quiet = False
        self._not_before = 0.0
        self._later: asyncio.TimerHandle | None = None
        for slider in self.sliders.values():
            slider.observe(self._moved, names="value")

    @property
    def values(self) -> dict[str, Any]:
        return {name: slider.value for name, slider in self.sliders.items()}

    @property
    def image(self) -> bytes:
        return self._picture.png

    def set(self, **values: Any) -> "Explorer":
        """Move sliders and draw once, at once. Raises RequestError for an unknown slider or a value it cannot take."""
        self.place(**values)
        self._refresh()
        self._picture.reveal()
        return self

    def place(self, **values: Any) -> None:
        """Move sliders without drawing."""
        for name in values:
            if name not in self.sliders:
                near = difflib.get_close_matches(name, self.sliders, n=1)
                known = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(self.sliders) or 'none'}"
                raise RequestError(f"there is no slider {name!r}; {known}")
        self._quiet = True
        try:
            for name, value in values.items():
                _assign(name, self.sliders[name], value)
        finally:
            self._quiet = False

    def show(self, drawn: Any = None) -> None:
        """Put a finished picture into the output, ``drawn`` or where the sliders stand, and the sliders below it."""
        self._refresh()
        picture = self.image if drawn is None else _png(drawn)
        if picture:
            _show(picture, "" if self.message else self._description())
        _need("IPython.display").display(self)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The sliders where a kernel runs; a sentence where none does."""
        tr = _tr()
        bundle = self.widget._repr_mimebundle_(**options)
        sentence = tr("Sliders: {names}. They appear where the notebook runs.", names=", ".join(self.sliders))
        return {**(bundle or {}), "text/plain": sentence}

    def _moved(self, _: object) -> None:
        if self._quiet:
            return
        wait = self._not_before - time.monotonic()
        if wait > 0:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                pass  # no loop that could draw later: draw now
            else:
                if self._later is None:
                    self._later = loop.call_later(wait, self._catch_up)
                return
        self._refresh()
        self._picture.reveal()

    def _catch_up(self) -> None:
        """Draws where the sliders stand now: the positions in between are skipped."""
        self._later = None
        self._refresh()
        self._picture.reveal()

    def _refresh(self) -> None:
        started = time.monotonic()
        self.drawn += 1
        try:
            description = self._description()
            picture = _png(self._draw_figure(**self.values), description)
        except Exception as error:
            self.message = str(error) if isinstance(error, Dsv3Error) else f"{type(error).__name__}: {error}"
        else:
            self.message = ""
            self._picture.put(picture, description)
        self._message.value = f'<pre style="white-space: pre-wrap">{escape(self.message)}</pre>' if self.message else ""
        ended = time.monotonic()
        self._not_before = ended + max(INTERVAL, ended - started)

    def _description(self) -> str:
        return "" if self._describe is None else self._describe(**self.values)


def explore(
    draw: Draw, *, static: Any = None, describe: Callable[..., str] | None = None, **sliders: Any
) -> Explorer | None:
    """Show the figure of ``draw(**values)``, finished, and below it sliders that draw it anew.

    Args:
        static: what is shown first: a Figure, or values for some of the sliders; None: where the sliders start.
        describe: (**values) -> one line of alternative text, which stands below the picture and changes with it.
        sliders: a parameter of ``draw`` each: a widget of ipywidgets, a range (low, high) or (low, high, step), or a
            list of choices. A range starts at its low end unless ``static`` says otherwise.

    Without ipywidgets the figure is shown all the same, with a line that says what to install, and the result is None.
    """
    starts: dict[str, Any] = dict(static) if isinstance(static, Mapping) else {}
    drawn = None if static is None or isinstance(static, Mapping) else static
    try:
        _need("ipywidgets")
    except RequestError as error:
        starts = {name: _start(what) for name, what in sliders.items()} | starts
        _show(_png(draw(**starts) if drawn is None else drawn), "" if describe is None else describe(**starts))
        display = _need("IPython.display")
        display.display(display.Markdown(str(error)))
        return None
    explorer = Explorer(draw, sliders, describe)
    explorer.place(**starts)
    explorer.show(drawn)
    return explorer


def _start(what: Any) -> Any:
    """Where a slider starts, when there is no ipywidgets to make it."""
    return what[0] if isinstance(what, Sequence) else getattr(what, "value", what)


def _slider(ipywidgets: Any, name: str, what: Any) -> Any:
    if isinstance(what, ipywidgets.Widget):
        if not what.has_trait("value"):
            raise RequestError(f"slider {name!r} is a {type(what).__name__}, which has no value to draw with")
        what.description = what.description or name
        return what
    if isinstance(what, list) and what:
        return ipywidgets.SelectionSlider(options=what, value=what[0], description=name)
    if isinstance(what, tuple):
        bounds: tuple[Any, ...] = what
        if len(bounds) in (2, 3) and all(isinstance(x, (int, float)) for x in bounds):
            whole = all(isinstance(x, int) for x in bounds)
            low, high, step = (*bounds, 1 if whole else (bounds[1] - bounds[0]) / 100)[:3]
            if low < high and step > 0:
                kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
                return kind(value=low, min=low, max=high, step=step, description=name)
    raise RequestError(
        f"slider {name!r} is {what!r}; expected a widget, a range (low, high) or (low, high, step), or a list of "
        "choices"
    )


def _assign(name: str, slider: Any, value: Any) -> None:
    """A slider would clamp a value in silence."""
    before = slider.value
    try:
        slider.value = value
    except Exception as error:  # traitlets.TraitError; SelectionSlider has its own
        raise RequestError(f"slider {name!r} cannot be {value!r}: {error}") from None
    if slider.value != value:
        slider.value = before
        raise RequestError(f"slider {name!r} cannot be {value!r}: it goes from {slider.min} to {slider.max}")


# --- a prompt and its experts ---------------------------------------------------------------------------------------


def pieces(tokenizer: "Tokenizer", token_ids: Sequence[int]) -> list[str]:
    """The text that each token adds. A character of several tokens stands at the last of them, "" at the others."""
    stream = tokenizer.stream()
    texts = [stream.push(token) for token in token_ids]
    rest = stream.flush()
    return [*texts[:-1], texts[-1] + rest] if texts else []


class PromptBox:
    """A text to type and the experts that its tokens visit, layer by layer. ``set(text=..., layer=...)``, ``html``."""

    def __init__(self, llm: "LLM", text: str = "", *, layer: int | None = None) -> None:
        ipywidgets, tr = _need("ipywidgets"), _tr()
        if llm.tokenizer is None:
            raise RequestError("this model was given no tokenizer, so it cannot read a text")
        self.llm, self.tokenizer = llm, llm.tokenizer
        config = llm.config
        self.layers = [i for i in range(config.n_layers) if config.is_moe(i)]
        if not self.layers:
            raise RequestError(f"none of the {config.n_layers} layers of this model has experts: there is no routing")
        options = [(tr("layer {index}", index=i), i) for i in self.layers]
        self._layer = ipywidgets.Dropdown(options=options, value=self.layers[0], description=tr("layer"))
        self._text = ipywidgets.Textarea(
            description=tr("text"), continuous_update=False, layout=ipywidgets.Layout(width="95%")
        )
        self._strip = ipywidgets.HTML()
        self.widget = ipywidgets.VBox([self._text, self._layer, self._strip])
        self._routes: dict[int, tuple[list[list[int]], list[list[float]]]] = {}
        self._tokens: list[str] = []
        self._text.observe(lambda _: self._read(), names="value")
        self._layer.observe(lambda _: self._render(), names="value")
        self.set(text=text, layer=self.layers[0] if layer is None else layer)

    @property
    def html(self) -> str:
        return str(self._strip.value)

    def set(self, *, text: str | None = None, layer: int | None = None) -> "PromptBox":
        if layer is not None:
            if layer not in self.layers:
                known = f"{self.layers[0]} to {self.layers[-1]}"
                raise RequestError(f"layer {layer} has no experts; layers {known} have")
            self._layer.value = layer
        if text is not None:
            self._text.value = text
        return self

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The box where a kernel runs; the strip as it stands, where none does."""
        bundle = self.widget._repr_mimebundle_(**options)
        return {**(bundle or {}), "text/html": self.html, "text/plain": " ".join(self._tokens)}

    def _read(self) -> None:
        """Tokenise and route. What does not work is said where the strip would be."""
        text = str(self._text.value)
        self._routes, self._tokens = {}, []
        if text:
            try:
                token_ids = self.tokenizer.encode(text)
                if len(token_ids) > self.llm.max_seq_len:
                    raise RequestError(f"the text has {len(token_ids)} tokens; the model reads {self.llm.max_seq_len}")
                self._route(token_ids)
            except Dsv3Error as error:
                self._strip.value = f"<pre>{escape(str(error))}</pre>"
                return
        self._render()

    def _route(self, token_ids: list[int]) -> None:
        model = self.llm.model
        # Nobody else may run the model meanwhile: the taps would hear both.
        with self.llm.engine.lock, torch.inference_mode(), capture(model, "layers.*.gate.*_TK") as records:
            model.hidden(torch.tensor([token_ids], device=model.embed.weight.device))
        for i in self.layers:
            indices_TK, weights_TK = (
                records[f"layers.{i}.ffn.gate.{name}"][0] for name in ("indices_TK", "weights_TK")
            )
            self._routes[i] = indices_TK.tolist(), weights_TK.tolist()
        # An id that stands for no text, such as the one that begins every sequence, is shown by its name.
        shown = iter(pieces(self.tokenizer, [t for t in token_ids if not self.tokenizer.is_special(t)]))
        names = (self.tokenizer.id_to_token(t) or str(t) if self.tokenizer.is_special(t) else None for t in token_ids)
        self._tokens = [next(shown) if name is None else name for name in names]

    def _render(self) -> None:
        if not self._tokens:
            self._strip.value = ""
            return
        experts_TK, weights_TK = self._routes[int(self._layer.value)]
        strip = _need("dsv3.viz").token_strip
        self._strip.value = strip(self._tokens, experts_TK, weights_TK, n_experts=self.llm.config.n_routed_experts)


# --- the load while the model writes --------------------------------------------------------------------------------


class LiveLoad:
    """The expert load of a text while it is being written: the picture is drawn anew every ``every`` tokens.

    ``run()`` writes in this thread and returns the text; ``start()`` in one of its own, so that the button "stop"
    works, and ``wait()`` until it has ended. ``loads`` are the loads so far, the prompt's included.
    """

    def __init__(
        self, llm: "LLM", prompt: str | Sequence[int], params: "SamplingParams | None" = None, *, every: int = 8
    ) -> None:
        ipywidgets, tr = _need("ipywidgets"), _tr()
        if every < 1:
            raise RequestError(f"every is {every}; the picture can be drawn every 1, 2, ... tokens")
        self.llm, self.prompt, self.params, self.every = llm, prompt, params, every
        self.text, self.n_tokens, self.drawn = "", 0, 0
        self.loads: list[LayerLoad] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._start_button = ipywidgets.Button(description=tr("write"))
        self._stop_button = ipywidgets.Button(description=tr("stop"), disabled=True)
        self._start_button.on_click(lambda _: self.start())
        self._stop_button.on_click(lambda _: self.stop())
        self._words = ipywidgets.HTML()
        self._picture = _Picture()
        buttons = ipywidgets.HBox([self._start_button, self._stop_button])
        self.widget = ipywidgets.VBox([buttons, self._words, self._picture.widget])

    @property
    def image(self) -> bytes:
        return self._picture.png

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def run(self) -> str:
        """Write to the end, or until ``stop``, which another thread or a drawing may call. Returns the text."""
        self.text, self.n_tokens, self.loads = "", 0, []
        self._stop.clear()
        self._start_button.disabled, self._stop_button.disabled = True, False
        self._words.value = ""
        due = self.every
        try:
            with capture(self.llm.model, "gate.indices_TK") as records:
                for event in self.llm.stream(self.prompt, self.params):
                    self.text += event.text
                    self.n_tokens += len(event.token_ids)
                    ends = event.finish_reason is not None or self._stop.is_set()
                    if ends or self.n_tokens >= due:
                        self._draw(records)
                        due = self.n_tokens + self.every
                    if ends:
                        break  # the stream is dropped here, and gives its cache pages back
        except Dsv3Error as error:
            self._words.value = f"<pre>{escape(str(error))}</pre>"
        finally:
            self._start_button.disabled, self._stop_button.disabled = False, True
        return self.text

    def start(self) -> None:
        """``run`` in the background. Nothing where it is running already."""
        if self.running:
            return
        work = contextvars.copy_context()  # the reader's language goes along
        self._thread = threading.Thread(target=work.run, args=(self.run,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the token that is being made; its cache pages go back."""
        self._stop.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Until the background run has ended; whether it has."""
        if self._thread is not None:
            self._thread.join(timeout)
        return not self.running

    def _repr_mimebundle_(self, **options: Any) -> Any:
        tr = _tr()
        bundle = self.widget._repr_mimebundle_(**options)
        return {**(bundle or {}), "text/plain": tr("The expert load while the model writes, where the notebook runs.")}

    def _draw(self, records: Mapping[str, Sequence[torch.Tensor]]) -> None:
        tr, viz = _tr(), _need("dsv3.viz")
        self.loads = loads_from_records(records, self.llm.config.n_routed_experts)
        loads = {tr("after {count} tokens", count=self.n_tokens): self.loads}
        description = viz.describe_expert_load(loads)
        self._picture.put(_png(viz.draw_expert_load(loads), description), description)
        self._words.value = f'<div style="white-space: pre-wrap">{escape(self.text)}</div>'
        self.drawn += 1
