"""How well the live service predicts its iterations, and what an iteration costs beside the model.

    python -m tests.bench prediction [--rps 14] [--duration 60] [--torch-threads 1] [--fresh]

A server of this process with its engine process, and `python -m loadgen` with a mixed load (all
three tiers, lognormal lengths) in a third. The engine is the real one, with a note taken of every
iteration: predicted and actual seconds from planning to commit, as the scheduler observes them.
Prints tables and, as the last line, a JSON object; exit code 1 when the median of
|actual / predicted - 1| is 10 % or more, or there were fewer than 2,000 iterations.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engine.config import EngineConfig
from engine.deciding.latency import LatencyProfile
from engine.deciding.plan import Done, Event, Executor, Plan, Token
from engine.deciding.questions import Stats
from engine.deciding.scheduler import Scheduler
from engine.driving import build
from engine.driving.loop import Engine
from server import logs
from server.app import Server
from server.config import ServerConfig
from tests.bench._notes import NOTES, Note, gaps, read

GOAL = 0.10
ITERATIONS = 2000


class Noting:
    """A scheduler and its executor, with a note of every iteration."""

    def __init__(self, scheduler: Scheduler, executor: Executor, path: str) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._file = open(path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 - the process closes it
        self._run_s = 0.0
        self._rested = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    @property
    def compilations(self) -> int:
        return self._executor.compilations

    def plan(self, now: float) -> Plan | None:
        plan = self._scheduler.plan(now)
        self._rested |= plan is None
        return plan

    def launch(self, plan: Plan) -> Done:
        started_at = time.perf_counter()
        tokens = self._executor.launch(plan).tokens()
        self._run_s = time.perf_counter() - started_at
        return Done(tokens)

    def commit(self, plan: Plan, tokens: list[Token], now: float) -> list[Event]:
        actual_s = now - plan.planned_at
        note = Note(
            plan.planned_at, plan.predicted_s, actual_s, self._run_s, self._rested, *plan.work
        )
        self._rested = False
        self._file.write(json.dumps(note) + "\n")
        return self._scheduler.commit(plan, tokens, now)


def build_noting(config: EngineConfig) -> Engine:
    """Builds an engine that notes its iterations: the factory that the engine process is told."""
    engine = build.build(replace(config, overlap="off"))
    assert isinstance(engine.scheduler, Scheduler)
    noting = Noting(engine.scheduler, engine.executor, os.environ[NOTES])
    return engine._replace(scheduler=noting, executor=noting)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench prediction", description=__doc__)
    parser.add_argument("--rps", type=float, default=14.0)
    parser.add_argument("--duration", type=float, default=60.0, help="seconds")
    parser.add_argument("--torch-threads", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="calibrate, whatever is remembered")
    parser.add_argument("--notes", type=Path, help="keep the notes in this file")
    arguments = parser.parse_args(argv)
    logs.configure("auto", "warning")
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.notes or Path(folder) / "notes.jsonl"
        os.environ[NOTES] = str(path)
        profile = Path(folder) / "profile.json"
        served = asyncio.run(_serve(arguments, profile))
        notes = read(path)
        calibrated = LatencyProfile.from_dict(json.loads(profile.read_text()))
    return _report(arguments, notes, calibrated, served)


async def _serve(arguments: argparse.Namespace, profile: Path) -> dict[str, Any]:
    """Serves the load; returns what the scheduler says in the end."""
    engine = EngineConfig(
        factory="tests.bench.prediction:build_noting",
        torch_threads=arguments.torch_threads,
        recalibrate=arguments.fresh,
        save_profile=profile,
    )
    server = Server(ServerConfig(port=0, engine=engine))
    await server.start()
    load = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadgen", "--target", f"127.0.0.1:{server.port}"),
        *("--rps", str(arguments.rps), "--duration", str(arguments.duration)),
        *("--prompt-tokens", "150/700", "--output-tokens", "30/80"),
    )
    status = await load.wait()
    stats = (await server.engine.link.ask(Stats())).scheduler
    await server.drain()
    await server.stop()
    if status:
        raise SystemExit(f"the load generator ended with status {status}")
    return {
        "iterations": stats.totals.num_iterations,
        "recent": None if stats.latency_errors is None else stats.latency_errors.to_dict(),
    }


def _report(
    arguments: argparse.Namespace,
    notes: list[Note],
    calibrated: LatencyProfile,
    served: dict[str, Any],
) -> int:
    assert len(notes) == served["iterations"]
    kinds: dict[str, Callable[[Note], bool]] = {
        "all": lambda n: True,
        "decodes only": lambda n: not n.num_chunks,
        "up to 64 tokens with a chunk": lambda n: bool(n.num_chunks) and _tokens(n) <= 64,
        "65 to 256": lambda n: bool(n.num_chunks) and 64 < _tokens(n) <= 256,
        "more": lambda n: bool(n.num_chunks) and _tokens(n) > 256,
    }
    print(f"{'iterations':<30}{'count':>7}{'error p50':>11}{'p95':>8}{'ratio p50':>11}")
    for name, is_kind in kinds.items():
        part = [n for n in notes if is_kind(n)]
        if part:
            ratio = statistics.median(n.actual_s / n.predicted_s for n in part)
            p50, p95 = _quantiles([n.error for n in part])
            print(f"{name:<30}{len(part):>7}{p50:>11.1%}{p95:>8.1%}{ratio:>11.2f}")
    outside = [n.actual_s - n.run_s for n in notes]
    between = list(gaps(notes))
    p50, p95 = _quantiles([n.error for n in notes])
    result = {
        "benchmark": "prediction",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "torch_threads": arguments.torch_threads,
        "rps": arguments.rps,
        "iterations": len(notes),
        "error_p50": round(p50, 4),
        "error_p95": round(p95, 4),
        "median_iteration_ms": _ms(n.actual_s for n in notes),
        "median_model_ms": _ms(n.run_s for n in notes),
        "median_planning_ms": _ms(outside),
        "median_between_iterations_ms": _ms(between),
        "segments": [s.up_to for s in calibrated.segments],
        "recent": served["recent"],
    }
    print(json.dumps(result))
    return 0 if p50 < GOAL and len(notes) >= ITERATIONS else 1


def _tokens(note: Note) -> int:
    return note.num_decodes + note.num_prefill


def _quantiles(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[int(0.95 * len(ordered))]


def _ms(seconds: Any) -> float:
    return round(1e3 * statistics.median(seconds), 3)
