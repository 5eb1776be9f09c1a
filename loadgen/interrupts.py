"""Ctrl-C, SIGTERM and SIGHUP: each ends what is being done, and what was done is reported."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """By a signal of that number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def number_of(interrupt: KeyboardInterrupt) -> int:
    return interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT


def exit_status(number: int) -> int:
    """Of a command that a signal of that number ended, as shells have it."""
    return 128 + number


def interrupt(number: int) -> None:
    """What a signal does where nothing better is known."""
    raise Interrupted(number)


@contextlib.contextmanager
def handled(handler: Callable[[int], None]) -> Iterator[None]:
    """Each of them calls `handler` with its number while the block lasts; not in a thread beside
    the main one. SIGHUP stays ignored where it is, as nohup has it.
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
    """While what was done is told: a terminal that closes may say so twice, and who waits for the
    end may ask for it twice.
    """
    return handled(lambda number: None)
