"""The embedded model's engine, as `bench service` looks at it.

    python -m tests.bench._engines

is the engine without a service: for each line of JSON on standard input, a list of [prompt, number
of tokens to generate], it admits all of these at once, plans, computes and commits until they are
done, and prints how long that took. `build` is a factory for EngineConfig: the engine, with notes
of when each request came to the service, when it reached the engine, and when its first token was
committed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from engine.config import EngineConfig
from engine.deciding.plan import Event, Plan, Sampled, Token
from engine.deciding.request import Request, Sampling
from engine.deciding.scheduler import Scheduler
from engine.driving import build as driving
from engine.driving.loop import Engine
from engine.processes import collector

NOTES = "NIYAMA_BENCH_NOTES"  # names the file for the engine process


class Noting:
    """A scheduler that writes a line for each request: its id and its three instants, in seconds of
    the monotonic clock.
    """

    def __init__(self, scheduler: Scheduler, path: str) -> None:
        self._scheduler = scheduler
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - the process closes it
        self._waiting: dict[str, tuple[float, float]] = {}  # for their first token
        self._lines: list[str] = []  # not yet written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def submit(self, request: Request, now: float) -> list[Event]:
        self._waiting[request.id] = request.arrived_at, now
        return self._scheduler.submit(request, now)

    def commit(self, plan: Plan, tokens: list[Token], now: float) -> list[Event]:
        events = self._scheduler.commit(plan, tokens, now)
        for event in events if self._waiting else ():
            if isinstance(event, Sampled) and event.request_id in self._waiting:
                arrived_at, submitted_at = self._waiting.pop(event.request_id)
                self._lines.append(f"{event.request_id} {arrived_at} {submitted_at} {now}\n")
        return events

    def plan(self, now: float) -> Plan | None:
        """Writes first: the tokens are on their way by now, and the file does not delay them."""
        self._file.writelines(self._lines)
        self._file.flush()
        self._lines.clear()
        return self._scheduler.plan(now)


def build(config: EngineConfig) -> Engine:
    engine = driving.build(config)
    assert isinstance(engine.scheduler, Scheduler)
    return engine._replace(scheduler=Noting(engine.scheduler, os.environ[NOTES]))


def run(engine: Engine, asked: list[tuple[list[int], int]]) -> dict[str, float]:
    """Serves them from first to last, with nobody listening."""
    scheduler, executor = engine.scheduler, engine.executor
    started_at, cpu = time.monotonic(), time.process_time()
    for number, (prompt, length) in enumerate(asked):
        sampling = Sampling(max_tokens=length, seed=1)
        scheduler.submit(Request(str(number), prompt, sampling, started_at), started_at)
    num_tokens = 0
    while (plan := scheduler.plan(time.monotonic())) is not None:
        tokens = executor.launch(plan).tokens()
        scheduler.commit(plan, tokens, time.monotonic())
        num_tokens += len(tokens)
    return {
        "seconds": time.monotonic() - started_at,
        "cpu_s": time.process_time() - cpu,
        "tokens": num_tokens,
    }


def main() -> None:
    engine = driving.build(EngineConfig())
    collector.settle()  # as the engine process does
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(engine, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
