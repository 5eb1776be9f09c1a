"""`python -m server` before an engine that computes nothing and takes its time for it: an iteration
lasts as long as a profile says (see `attainment.py`).
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace

from engine.config import EngineConfig
from engine.deciding.latency import UNBOUNDED, LatencyProfile, Segment
from engine.deciding.plan import Pending, Plan
from engine.driving import null
from engine.driving.loop import Engine
from server.command import run
from server.settings import parse

SLOW = "NIYAMA_BENCH_SLOW"  # tells the engine process how many times longer they last


def priced(slow: float) -> LatencyProfile:
    """Returns the profile of an engine that is so many times slower than a quick one."""
    segment = Segment(UNBOUNDED, base=4e-3 * slow, prefill=1.5e-4 * slow, decode=2e-4 * slow)
    return LatencyProfile("priced", (segment,), max_chunk=512)


class Priced:
    """An executor that sleeps."""

    def __init__(self, inner: null.NullExecutor, profile: LatencyProfile) -> None:
        self._inner = inner
        self._profile = profile

    @property
    def compilations(self) -> int:
        return self._inner.compilations

    def launch(self, plan: Plan) -> Pending:
        time.sleep(self._profile.seconds(plan.work))
        return self._inner.launch(plan)


def build(config: EngineConfig) -> Engine:
    """Builds such an engine: a factory for EngineConfig."""
    profile = priced(float(os.environ[SLOW]))
    engine = null.build(config, profile)
    assert isinstance(engine.executor, null.NullExecutor)
    return engine._replace(executor=Priced(engine.executor, profile))


def main() -> int:
    config = parse(sys.argv[1:])
    engine = replace(config.engine, factory="tests.bench._priced:build")
    return run(replace(config, engine=engine))


if __name__ == "__main__":
    sys.exit(main())
