"""Factories of engines for tests; the engine process imports them by name."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from dataclasses import replace
from typing import Any

from engine.config import EngineConfig
from engine.deciding.latency import UNBOUNDED, LatencyProfile, Segment
from engine.deciding.plan import NOT_FINITE, Done, Pending, Plan, Token
from engine.driving import null
from engine.driving.loop import Engine

NULL = "engine.driving.null:build"
DEAR = "tests.engine.driving.engines:build_dear"
SLOW = "tests.engine.driving.engines:build_slow"
SPOILT = "tests.engine.driving.engines:build_spoilt"


class Failing:
    """Computes until a request asks for the seed that breaks it."""

    BREAKING_SEED = 666

    def __init__(self, inner: null.NullExecutor) -> None:
        self._inner = inner

    @property
    def compilations(self) -> int:
        return self._inner.compilations

    def launch(self, plan: Plan) -> Pending:
        if any(s.request.sampling.seed == self.BREAKING_SEED for s in plan.sampling):
            raise RuntimeError("the executor broke")
        return self._inner.launch(plan)


class Slow:
    """Takes STEP_S for an iteration, so that a queue is there to be looked at."""

    STEP_S = 0.01

    def __init__(self, inner: null.NullExecutor) -> None:
        self._inner = inner

    @property
    def compilations(self) -> int:
        return self._inner.compilations

    def launch(self, plan: Plan) -> Pending:
        time.sleep(self.STEP_S)
        return self._inner.launch(plan)


class Hanging(Failing):
    """Computes until a request asks for the seed that makes it sleep for ever; or never at all."""

    def __init__(self, inner: null.NullExecutor, always: bool = False) -> None:
        super().__init__(inner)
        self._always = always

    def launch(self, plan: Plan) -> Pending:
        if self._always or any(
            s.request.sampling.seed == self.BREAKING_SEED for s in plan.sampling
        ):
            threading.Event().wait()
        return super().launch(plan)


def build_telling(config: EngineConfig) -> Engine:
    """What it was started with of the one before stands in its name."""
    engine = null.build(config)
    name = "none" if config.pinned is None else f"{config.pinned.profile.name}"
    if config.pinned is not None and config.pinned.learnt:
        name += " learnt"
    return engine._replace(info=replace(engine.info, model_name=name))


def build_dear(config: EngineConfig) -> Engine:
    """Its scheduler believes that a prompt takes a second for each token."""
    return null.build(config, LatencyProfile("dear", (Segment(UNBOUNDED, 1e-4, 1.0),)))


def build_slow(config: EngineConfig) -> Engine:
    engine = null.build(config)
    assert isinstance(engine.executor, null.NullExecutor)
    return engine._replace(executor=Slow(engine.executor))


def build_hanging(config: EngineConfig) -> Engine:
    engine = null.build(config)
    assert isinstance(engine.executor, null.NullExecutor)
    return engine._replace(executor=Hanging(engine.executor))


def build_spinning(config: EngineConfig) -> Engine:
    """Its scheduler never comes to an end where it has something to plan."""
    engine = null.build(config)
    scheduler: Any = engine.scheduler
    plan = scheduler.plan

    def spin(now: float) -> Plan | None:
        while plan(now) is not None:
            pass
        return None

    scheduler.plan = spin
    return engine


def build_stopping(config: EngineConfig) -> Engine:
    """Stops while it loads."""
    os.kill(os.getpid(), signal.SIGSTOP)
    return null.build(config)


def build_first_hanging(config: EngineConfig) -> Engine:
    """The first engine of a service hangs at the first request, those after it do not."""
    engine = null.build(config)
    assert isinstance(engine.executor, null.NullExecutor)
    if config.pinned is None:
        return engine._replace(executor=Hanging(engine.executor, always=True))
    return engine


def build_failing(config: EngineConfig) -> Engine:
    engine = null.build(config)
    assert isinstance(engine.executor, null.NullExecutor)
    return engine._replace(executor=Failing(engine.executor))


def build_saying(config: EngineConfig) -> Engine:
    """Says what it does, as every factory may."""
    log = logging.getLogger("engine.driving.anywhere")
    for doing in ("loading", "measuring"):
        log.info(doing)
    return null.build(config)


def build_never(config: EngineConfig) -> Engine:
    raise TypeError("a mistake of ours")


def build_dying(config: EngineConfig) -> Engine:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class Spoilt(Slow):
    """The same, and no number comes out for a request with the seed that breaks it."""

    def launch(self, plan: Plan) -> Pending:
        spoilt = {s.id for s in plan.sampling if s.request.sampling.seed == Failing.BREAKING_SEED}
        pending = super().launch(plan)
        if not spoilt:
            return pending
        tokens = [
            Token(NOT_FINITE) if sequence.id in spoilt else token
            for sequence, token in zip(plan.sampling, pending.tokens(), strict=True)
        ]
        return Done(tokens)


def build_spoilt(config: EngineConfig) -> Engine:
    engine = null.build(config)
    assert isinstance(engine.executor, null.NullExecutor)
    return engine._replace(executor=Spoilt(engine.executor))
