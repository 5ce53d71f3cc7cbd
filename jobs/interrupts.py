"""The first Ctrl-C or SIGTERM asks a run to stop when it has saved; a second one stops it at once.

Outside of a run's loop, where nothing needs saving, the first one stops the command.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class Interrupted(BaseException):
    """Asked to stop by a signal; the work so far is saved. `signal_number` says which.

    No Exception, as KeyboardInterrupt is none: libraries that load a model mustn't take it for a failure of their own.
    """

    def __init__(self, signal_number: int):
        super().__init__("stopped; the same command goes on from here")
        self.signal_number = signal_number


_came: list[int] = []
"""Signals that `stop` was called for."""


@contextlib.contextmanager
def stopping_at_signals() -> Iterator[None]:
    """From here on a signal stops the command at once. Ctrl-C stays ignored where it was, as in the background."""
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        _came.clear()


def stop(number: int, _frame: FrameType | None = None) -> None:
    """Stop the command at once: a handler of signals."""
    _came.append(number)
    raise KeyboardInterrupt if number == signal.SIGINT else Interrupted(number)


def stop_if_a_signal_came() -> None:
    """Raise again what C code swallowed: Python's compiler does, when a module without a .pyc is imported."""
    if _came:
        stop(_came[-1])


class StopRequest:
    """Whether a signal has asked the run to stop."""

    def __init__(self, on_ask: Callable[[str], object]):
        self._on_ask = on_ask
        self._signal: int | None = None

    def check(self) -> None:
        """Raise Interrupted if a signal asked for it; called where nothing is half done."""
        if self._signal is not None:
            raise Interrupted(self._signal)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals within this context."""
        before: dict[int, Any] = {}
        with contextlib.suppress(ValueError):  # not in the main thread: whoever runs us there handles signals
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, self._ask)
        try:
            yield
        finally:
            for taken, handler in before.items():
                signal.signal(taken, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self._signal is not None:
            raise Interrupted(number)
        self._signal = number
        self._on_ask("stopping after the work in hand; again to stop at once")
