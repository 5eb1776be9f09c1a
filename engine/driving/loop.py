"""The engine loop: the sole owner of everything that changes.

The loop is synchronous. Each turn takes in what front ends posted, then plans, computes and commits
one iteration. It knows neither model nor sockets: scheduler, executor, pipe and clock are handed
in, so that a test drives it step by step. All instants come from one clock, CLOCK_MONOTONIC in
service, which the processes of a machine share.

A device that computes by itself need not wait for the host's part of a turn. Looking ahead, a turn
plans and launches the next iteration first. While the device is at that, the turn waits for the
tokens of the iteration before, commits them and sends them:

    host    plan 2, launch 2 | commit 1, send 1 | receive, plan 3, launch 3 | commit 2, send 2
    device  1 ...............| 2 .......................................... | 3 ..............

At most one iteration is in flight while another is planned. A command is obeyed by the next plan,
and with more iterations ahead of that it would wait for longer, while the device gained nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from engine.deciding.entries import Unserved
from engine.deciding.forecast import Forecast
from engine.deciding.notable import Notable
from engine.deciding.plan import Event, Executor, Finished, Pending, Plan, Timings, Token
from engine.deciding.prefix_index import PrefixIndex
from engine.deciding.prefix_journal import PrefixJournal
from engine.deciding.questions import (
    Estimate,
    Explain,
    Prefixes,
    PrefixPart,
    Question,
    Recent,
    Stats,
)
from engine.deciding.request import Request
from engine.deciding.sequence import FinishReason
from engine.deciding.stats import EngineStats, Saturation, SchedulerStats, TierAsked
from engine.deciding.timeline import Timeline
from engine.driving.decision_file import DecisionFile
from engine.messages import (
    Ask,
    Cancel,
    Command,
    Describe,
    EngineInfo,
    Failure,
    Pinned,
    Reply,
    Report,
    Submit,
    Tell,
    Watch,
)

SIGN_OF_LIFE_S = 1.0  # a loop that works reports at least this often
LEARNT_S = 1.0  # at least so much time lies between two reports of what was learnt

_NO_TIMINGS = Timings(None, None, None, None, None, None, None, None)


class Scheduler(Protocol):
    """The part of `engine.deciding.scheduler.Scheduler` that the loop needs."""

    def submit(self, request: Request, now: float) -> list[Event]: ...

    def cancel(self, request_id: str, reason: FinishReason, now: float) -> list[Event]: ...

    def plan(self, now: float) -> Plan | None:
        """Returns the next iteration; None only where nothing is left to compute, and the loop then
        waits for the pipe.
        """

    def advance(self, plan: Plan, started_at: float) -> None: ...

    def commit(self, plan: Plan, tokens: list[Token], now: float) -> list[Event]: ...

    def stats(self) -> SchedulerStats: ...

    def saturation(self, tiers: Iterable[TierAsked], now: float) -> Saturation: ...

    def explain(self, request_id: str, tenant: str | None, now: float) -> Timeline: ...

    def unserved(self, call: Unserved) -> None: ...

    def recent(self, most: int) -> tuple[Notable, ...]: ...

    def estimate(self, asked: Estimate, now: float) -> Forecast: ...

    @property
    def prefixes(self) -> PrefixIndex: ...


def _nothing_learnt() -> tuple[float, ...]:
    return ()


class Engine(NamedTuple):
    """What a factory builds in the engine process.

    `pinned`, and what `learnt` returns, are for the engine that may have to take its place.
    """

    scheduler: Scheduler
    executor: Executor
    info: EngineInfo
    decisions: DecisionFile | None = None
    looks_ahead: bool = False  # plans and launches an iteration before it waits for the last
    pinned: Pinned | None = None
    learnt: Callable[[], tuple[float, ...]] = _nothing_learnt


class Pipe(Protocol):
    """The engine's end of what connects it with front ends.

    Both methods raise EOFError when who started the engine is gone.
    """

    def receive(self, timeout_s: float | None) -> list[Command]:
        """Returns what has been posted. Waits up to `timeout_s` for the first command; None: for
        ever.
        """

    def send(self, report: Report) -> None: ...


class Launched(NamedTuple):
    """An iteration in flight."""

    plan: Plan
    pending: Pending
    started_at: float

    @property
    def expected_at(self) -> float:
        """Returns the instant at which it is predicted to end."""
        return self.started_at + self.plan.predicted_s


class EngineLoop:
    """Serves what comes by the pipe: `run` it, or, in a test, call `step` for each turn."""

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        pipe: Pipe,
        clock: Callable[[], float],
        decisions: DecisionFile | None = None,
        looks_ahead: bool = False,
        learnt: Callable[[], tuple[float, ...]] = _nothing_learnt,
        on_turn: Callable[[bool], None] = lambda is_at_work: None,
    ) -> None:
        """`on_turn` is called with True when the loop sets to work, and with False when it waits
        for others: for commands, or for room to report what came of them.
        """
        self._scheduler = scheduler
        self._executor = executor
        self._pipe = pipe
        self._clock = clock
        self._decisions = decisions
        self._looks_ahead = looks_ahead
        self._learnt = learnt
        self._on_turn = on_turn
        self._learnt_at = -math.inf  # when it was last told
        self._in_flight: Launched | None = None
        self._compilations_before = executor.compilations  # before it serves
        self._wait_s: float | None = None
        self._sent_at = math.inf  # nothing is due before the first report
        self._busy_s = 0.0  # until the instant at which it was last reckoned
        self._reckoned_at = 0.0

    def run(self) -> None:
        """Serves until who started the engine is gone."""
        try:
            while True:
                self.step()
        except EOFError:
            return

    def step(self) -> None:
        """Takes one turn. What came of commands is sent before the next iteration is launched."""
        self._on_turn(False)
        commands = self._receive()
        self._on_turn(True)
        if commands:
            self._send(self._apply(commands), self._clock())
        last, self._in_flight = self._in_flight, None
        now = self._clock()
        plan = self._scheduler.plan(now if last is None else max(now, last.expected_at))
        if plan is None and last is None:
            self._wait_s = None
            self._reckon(now)
            self._send(Report(), self._clock())
            return
        self._wait_s = 0.0
        pending = None if plan is None else self._executor.launch(plan)
        if last is not None:
            now = self._finish(last.plan, last.pending)
        if plan is None or pending is None:
            return
        if self._looks_ahead:  # it begins where the last one ended
            self._scheduler.advance(plan, now)
            self._in_flight = Launched(plan, pending, now)
        else:
            self._finish(plan, pending)

    def _receive(self) -> list[Command]:
        """Returns what has been posted. Only where there is nothing to compute is waiting for it no
        busy time.
        """
        try:
            return self._pipe.receive(self._wait_s)
        finally:
            if self._wait_s is None:
                self._reckoned_at = self._clock()

    def _reckon(self, now: float) -> None:
        """All the time since it was last reckoned has been busy."""
        self._busy_s += now - self._reckoned_at
        self._reckoned_at = now

    def _finish(self, plan: Plan, pending: Pending) -> float:
        """Waits for an iteration, commits it and reports it. Returns when its tokens were there."""
        tokens = pending.tokens()
        now = self._clock()
        report = Report()
        report.add(self._scheduler.commit(plan, tokens, now))
        if (journal := self._scheduler.prefixes.journal) is not None:
            report.cache = journal.take()
        if now - self._learnt_at >= LEARNT_S:
            report.learnt, self._learnt_at = self._learnt(), now
        self._send(report, now)
        return now

    def _send(self, report: Report, now: float) -> None:
        """Sends the report where it says something or a sign of life is due. The decision log is
        written after that, so that nobody waits for the disk.
        """
        if report or now - self._sent_at >= SIGN_OF_LIFE_S:
            self._on_turn(False)
            self._pipe.send(report)
            self._on_turn(True)
            self._sent_at = now
        if self._decisions is not None and (line := self._decisions.flush()):
            self._pipe.send(Report(notices=[line]))

    def _apply(self, commands: list[Command]) -> Report:
        report = Report()
        for command in commands:
            now = self._clock()
            if isinstance(command, Submit):
                report.add(self._submit(command.request, now))
            elif isinstance(command, Cancel):
                report.add(self._scheduler.cancel(command.request_id, command.reason, now))
            elif isinstance(command, Tell):
                self._scheduler.unserved(command.call)
            elif isinstance(command, Watch):
                self._scheduler.prefixes.watch(command.is_on, now)
            elif isinstance(command, Describe):
                if self._decisions is not None:
                    self._decisions.describe(command.service, now)
            else:
                report.replies.append(self._reply(command, now))
        return report

    def _submit(self, request: Request, now: float) -> list[Event]:
        """Returns the events of a new request. One that the scheduler refuses ends here, with an
        error, and no other request notices.
        """
        try:
            return self._scheduler.submit(request, now)
        except ValueError as error:
            return [
                Finished(
                    request_id=request.id,
                    reason=FinishReason.ERROR,
                    prompt_tokens=len(request.prompt),
                    cached_tokens=0,
                    output_tokens=0,
                    targets=request.targets,
                    relegated=False,
                    num_preemptions=0,
                    timings=_NO_TIMINGS,
                    detail=str(error),
                )
            ]

    def _reply(self, ask: Ask, now: float) -> Reply:
        try:
            return Reply(ask.question_id, self._answer(ask.question, now))
        except LookupError as error:
            return Reply(ask.question_id, None, str(error), Failure.NOT_FOUND)
        except ValueError as error:
            return Reply(ask.question_id, None, str(error), Failure.INVALID)

    def _answer(self, question: Question[Any], now: float) -> object:
        """Returns the answer, of the type that the question states. Raises LookupError where what
        it asks about is not known, ValueError for a question that makes no sense.
        """
        match question:
            case Recent(most):
                return self._scheduler.recent(most)
            case Stats(tiers):
                self._reckon(now)
                return EngineStats(
                    self._scheduler.stats(),
                    self._scheduler.saturation(tiers, now),
                    self._executor.compilations - self._compilations_before,
                    self._busy_s,
                )
            case Explain(request_id, tenant):
                return self._scheduler.explain(request_id, tenant, now)
            case Estimate():
                return self._scheduler.estimate(question, now)
            case Prefixes(after):
                return self._journal().state(after)
            case PrefixPart(after, until):
                return self._journal().part(after, until)
        raise TypeError(f"the engine has no answer to {question!r}")

    def _journal(self) -> PrefixJournal:
        journal = self._scheduler.prefixes.journal
        if journal is None:
            raise ValueError("nobody watches the prefix cache")
        return journal
