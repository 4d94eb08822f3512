"""The only seam through which anything looks inside a running model.

A layer owns a ``Tap`` and hands it every tensor worth seeing: ``self.tap("scores_TE", scores_TE)``. Nobody listening
costs one attribute test. ``capture`` listens for the length of a ``with`` block:

    with capture(model, "gate.indices_TK") as records:
        model(tokens)
    records["layers.1.ffn.gate.indices_TK"]      # a list: one tensor for each time the layer ran
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from dsv3.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

Listener = Callable[[str, "Tensor"], None]


class Tap:
    """One layer's outlet for the tensors it names. Listeners are this layer's own: two models never hear each other."""

    __slots__ = ("listeners", "names")

    def __init__(self, *names: str) -> None:
        self.names = names
        self.listeners: tuple[Listener, ...] = ()

    def __reduce__(self) -> tuple[type["Tap"], tuple[str, ...]]:
        return Tap, self.names  # who listens to a model does not listen to its copies, and is not pickled with it

    def __call__(self, name: str, tensor: "Tensor") -> None:
        if self.listeners:
            for listener in self.listeners:
                listener(name, tensor)


def taps(model: "nn.Module") -> Iterator[tuple[str, Tap]]:
    """Every tap in ``model`` with the path of the module that owns it, in the order of construction."""
    for path, module in model.named_modules():
        tap = getattr(module, "tap", None)
        if isinstance(tap, Tap):
            yield path, tap


@contextmanager
def capture(model: "nn.Module", *patterns: str, detach: bool = True) -> Iterator[dict[str, list["Tensor"]]]:
    """Record inner tensors of ``model`` while the block runs.

    Args:
        patterns: names to keep. A name matches as a whole (``layers.3.ffn.gate.scores_TE``), as a suffix
            (``gate.scores_TE``) or with shell wildcards (``layers.[0-2].*``). None given: everything.
        detach: cut the records from the autograd graph. ``False`` lets a loss be built on them.

    Yields:
        A dict from full name to the list of recorded tensors, in order of execution. The tensors are not copied: clone
        those that are written later (cache pages, buffers).

    Raises:
        ConfigError: no tensor has such a name.
    """
    for pattern in patterns:
        if not isinstance(pattern, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"{pattern!r} is no name of a tensor: give each name as an argument of its own")
    records: dict[str, list[Tensor]] = {}

    def wanted(name: str) -> bool:
        return not patterns or any(
            name == p or name.endswith("." + p) or fnmatchcase(name, p) or fnmatchcase(name, "*." + p) for p in patterns
        )

    def listener_for(keys: dict[str, str]) -> Listener:
        def listen(name: str, tensor: "Tensor") -> None:
            if name in keys:
                records.setdefault(keys[name], []).append(tensor.detach() if detach else tensor)

        return listen

    attached: list[tuple[Tap, Listener]] = []
    known: dict[str, None] = {}  # in order, and once: the names without their layers
    for path, tap in taps(model):
        full_names = {name: f"{path}.{name}" if path else name for name in tap.names}
        known.update(dict.fromkeys(tap.names))
        keys = {name: full_name for name, full_name in full_names.items() if wanted(full_name)}
        if keys:
            attached.append((tap, listener_for(keys)))
    if not attached:
        raise ConfigError(f"no tensor of this model is called {' or '.join(patterns)}; there are {', '.join(known)}")
    for tap, listener in attached:
        tap.listeners += (listener,)
    try:
        yield records
    finally:
        for tap, listener in attached:
            tap.listeners = tuple(other for other in tap.listeners if other is not listener)
