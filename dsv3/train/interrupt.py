"""Ctrl-C and SIGTERM end a run between two steps, with a state to resume from."""

import signal
import sys
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Asked between steps (``stop()``), it tells whether a signal wants the run to end.

    The first question, when the run begins, installs the handlers: until then nothing could be saved, and a signal
    does what it always does. So does a second signal: it ends the process at once. ``restore`` puts back what was.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __call__(self) -> bool:
        if not self._before:
            self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """What a shell reports of a program that the signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        assert self.signal is not None
        return 128 + self.signal

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._before = {}

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        for each in _SIGNALS:
            signal.signal(each, signal.default_int_handler)  # KeyboardInterrupt, which saving cleans up after
        sys.stderr.write(f"\n{self.signal.name}: saving after this step; once more to stop at once\n")
