"""Where the time of a request went: an account kept while it lives, and the sums at its end.

    arrived    taken in                     first token                              end
    | reading  | waiting | prefill | waiting | decoding | held | decoding            |
                         '--an iteration that computes a chunk of it

Time in which its pages were taken and it waits again is waiting, and what is then computed again is
prefill. All durations and instants are in seconds.
"""

from __future__ import annotations

from typing import NamedTuple


class Budget(NamedTuple):
    """The parts of a request's life, in seconds; they add up to all of it."""

    reading_s: float  # its message: received, parsed, tokenized, until the engine has it
    waiting_s: float  # in the queue
    prefill_s: float  # in iterations that computed its prompt, or again what had been lost
    decoding_s: float  # in iterations that computed its tokens
    held_s: float  # running, and sat iterations out

    @property
    def total_s(self) -> float:
        return sum(self)

    def in_ms(self) -> tuple[int, ...]:
        """Returns the parts in whole milliseconds, which add up to the whole in milliseconds: those
        that lose most by rounding down are rounded up.
        """
        exact = [1e3 * part for part in self]
        whole = [int(part) for part in exact]
        left = round(sum(exact)) - sum(whole)
        by_loss = sorted(range(len(exact)), key=lambda i: whole[i] - exact[i])
        for i in by_loss[:left]:
            whole[i] += 1
        return tuple(whole)


class Account:
    """What is known of a request's time while it lives. It begins when the engine takes it in."""

    __slots__ = (
        "_arrived_at",
        "_decoded_s",
        "_decodes_since",
        "_held_s",
        "_held_since",
        "_prefill_s",
        "_taken_in_at",
        "num_holds",
    )

    def __init__(self, arrived_at: float, now: float) -> None:
        self._arrived_at = arrived_at
        self._taken_in_at = now
        self._prefill_s = 0.0
        self._decoded_s = 0.0  # holds included
        self._decodes_since: float | None = None
        self._held_s = 0.0
        self._held_since: float | None = None
        self.num_holds = 0

    def compute(self, took_s: float) -> None:
        """An iteration that took so long computed a chunk of it."""
        self._prefill_s += took_s

    def decode(self, now: float) -> None:
        """Its prefill is over: it decodes from now on."""
        self._decodes_since = now

    def hold(self, now: float) -> None:
        """It sits iterations out from now on."""
        self._held_since = now
        self.num_holds += 1

    def go_on(self, now: float) -> None:
        """It sits out no more."""
        self._held_s += _since(self._held_since, now)
        self._held_since = None

    def stop(self, now: float) -> None:
        """It decodes no more, and waits."""
        self.go_on(now)
        self._decoded_s += _since(self._decodes_since, now)
        self._decodes_since = None

    def until(self, now: float) -> Budget:
        """Returns where its time went until now. What is in an iteration in flight is still told as
        waiting.
        """
        life_s = max(0.0, now - self._arrived_at)
        left_s = life_s - (reading_s := min(life_s, max(0.0, self._taken_in_at - self._arrived_at)))
        decoded_s = min(left_s, self._decoded_s + _since(self._decodes_since, now))
        left_s -= decoded_s
        held_s = min(decoded_s, self._held_s + _since(self._held_since, now))
        prefill_s = min(left_s, self._prefill_s)
        return Budget(reading_s, left_s - prefill_s, prefill_s, decoded_s - held_s, held_s)


def _since(instant: float | None, now: float) -> float:
    return 0.0 if instant is None else max(0.0, now - instant)
