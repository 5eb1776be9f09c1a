"""What a simulated target says of itself over time: chunk size and queue length, folded while the
run goes on, so that hours of iterations take no more room than a chart can show.
"""

from __future__ import annotations

from array import array

from engine.deciding.plan import Plan
from engine.simulator import Replica
from loadgen.targets.target import Series

MOST_STEPS = 512
_FIRST_STEP_S = 0.1


def _zeros() -> array[float]:
    return array("d", bytes(8 * MOST_STEPS))


class SeriesRecorder:
    """Watches every iteration of the simulator. When a run outgrows MOST_STEPS steps, neighbours
    are joined and a step becomes twice as long.
    """

    def __init__(self) -> None:
        self._step_s = _FIRST_STEP_S
        self._num_steps = 0
        self._chunks, self._prefill = _zeros(), _zeros()  # iterations that prefill, their tokens
        self._samples, self._waiting = _zeros(), _zeros()  # of the queue, once a step and replica
        self._sampled: dict[Replica, float] = {}  # when each one's queue was last looked at

    def observe(self, replica: Replica, plan: Plan) -> None:
        """Notes an iteration that a replica is about to run."""
        index = self._index(replica.now)
        if plan.work.num_prefill:
            self._chunks[index] += 1
            self._prefill[index] += plan.work.num_prefill
        sampled_at = self._sampled.get(replica)
        if sampled_at is None or self._index(sampled_at) != index:
            self._sampled[replica] = replica.now
            self._samples[index] += 1
            self._waiting[index] += replica.scheduler.stats().num_waiting

    def series(self) -> Series:
        """Returns what was noted. Steps without an iteration hold 0: nothing was computed, nobody
        waited.
        """
        num = self._num_steps
        return Series(
            self._step_s,
            _ratios(self._prefill[:num], self._chunks[:num]),
            _ratios(self._waiting[:num], self._samples[:num]),
        )

    def _index(self, at: float) -> int:
        while at >= self._step_s * MOST_STEPS:
            self._step_s *= 2
            self._num_steps = (self._num_steps + 1) // 2
            for name in ("_chunks", "_prefill", "_samples", "_waiting"):
                setattr(self, name, _joined(getattr(self, name)))
        index = int(at / self._step_s)
        self._num_steps = max(self._num_steps, index + 1)
        return index


def _joined(values: array[float]) -> array[float]:
    halved = array("d", (a + b for a, b in zip(values[::2], values[1::2], strict=True)))
    return halved + array("d", bytes(8 * (MOST_STEPS - len(halved))))


def _ratios(totals: array[float], counts: array[float]) -> array[float]:
    pairs = zip(totals, counts, strict=True)
    return array("d", (total / count if count else 0.0 for total, count in pairs))
