"""The signals that end what is being done (Ctrl-C, SIGTERM, SIGHUP), so that what was done until
then is reported.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal of that number came."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def number_of(interrupt: KeyboardInterrupt) -> int:
    """Returns the number of the signal behind an interrupt; Python's own is a Ctrl-C."""
    return interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT


def exit_status(number: int) -> int:
    """Returns the exit status of a command that such a signal ended, as shells have it."""
    return 128 + number


def interrupt(number: int) -> None:
    """Raises Interrupted: what a signal does where nothing better is known."""
    raise Interrupted(number)


@contextlib.contextmanager
def handled(handler: Callable[[int], None]) -> Iterator[None]:
    """Makes each of the signals call `handler` with its number while the block lasts.

    In a thread other than the main one it does nothing, since signals come only there. SIGHUP stays
    ignored where it is, as nohup has it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        handler(number)

    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = [n for n in SIGNALS if not (ignored and n == signal.SIGHUP)]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, signal.SIG_DFL if previous is None else previous)


def unheard() -> contextlib.AbstractContextManager[None]:
    """Ignores the signals while the block lasts, in which what was done is reported.

    A terminal that closes may say so twice, and who waits for the end may ask for it twice.
    """
    return handled(lambda number: None)
