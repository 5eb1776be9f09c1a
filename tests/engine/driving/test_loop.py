"""The loop, turn by turn, with a scripted pipe, a moved clock and the real scheduler."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from engine.deciding.forecast import Forecast
from engine.deciding.latency import UNBOUNDED, LatencyModel, LatencyProfile, Segment
from engine.deciding.plan import Accepted, Done, Plan, Token, Work
from engine.deciding.questions import Estimate, Explain, Prefixes, PrefixPart, Recent, Stats
from engine.deciding.request import BEST_EFFORT, Request, Sampling
from engine.deciding.scheduler import Scheduler, SchedulerConfig
from engine.deciding.sequence import FinishReason
from engine.driving.decision_file import DecisionFile
from engine.driving.loop import SIGN_OF_LIFE_S, EngineLoop
from engine.messages import Ask, Cancel, Command, Failure, Report, Submit, Watch

PAGES = 16


class ScriptedPipe:
    """Hands out one batch of commands per turn, then reports that the front end is gone."""

    def __init__(self, *batches: Sequence[Command]) -> None:
        self._batches = deque(batches)
        self.timeouts: list[float | None] = []
        self.sent: list[Report] = []

    def receive(self, timeout_s: float | None) -> list[Command]:
        self.timeouts.append(timeout_s)
        if not self._batches:
            raise EOFError
        return list(self._batches.popleft())

    def send(self, report: Report) -> None:
        self.sent.append(report)


class CountingExecutor:
    """Token n of the n-th plan, for each sequence that samples."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []
        self.compilations = 0

    def launch(self, plan: Plan) -> Done:
        self.plans.append(plan)
        return Done([Token(len(self.plans)) for _ in plan.sampling])


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def make_scheduler() -> Scheduler:
    profile = LatencyProfile("test", (Segment(UNBOUNDED, 1e-3),))
    config = SchedulerConfig(num_pages=PAGES, context_len=64, page_size=4, policy="fcfs")
    return Scheduler(config, LatencyModel(profile))


def make_loop(pipe: ScriptedPipe, scheduler: Scheduler | None = None) -> EngineLoop:
    return EngineLoop(scheduler or make_scheduler(), CountingExecutor(), pipe, Clock())


def submit(request_id: str, max_tokens: int = 4, prompt_len: int = 3) -> Submit:
    sampling = Sampling(max_tokens=max_tokens)
    return Submit(Request(request_id, tuple(range(prompt_len)), sampling, arrived_at=0.0))


def test_one_report_per_iteration_tells_of_every_stream() -> None:
    pipe = ScriptedPipe([submit("a"), submit("b"), submit("c")], [], [])
    make_loop(pipe).run()
    accepted, *iterations = pipe.sent
    assert [type(event) for event in accepted.news] == [Accepted] * 3
    assert [report.sampled for report in iterations] == [
        [("a", n), ("b", n), ("c", n)] for n in (1, 2, 3)
    ]


def test_an_idle_engine_waits_for_the_pipe_and_a_busy_one_does_not() -> None:
    pipe = ScriptedPipe([submit("a", max_tokens=2)], [], [])
    make_loop(pipe).run()
    # Idle at first; two iterations; a look that finds nothing; then idle for ever.
    assert pipe.timeouts == [None, 0.0, 0.0, None]


def test_a_cancelled_request_holds_no_page_at_the_next_iteration() -> None:
    pipe = ScriptedPipe(
        [submit("a", max_tokens=30), submit("b", max_tokens=30)],
        [Cancel("a", FinishReason.CANCELLED), Ask(1, Stats())],
    )
    make_loop(pipe).run()
    report = next(report for report in pipe.sent if report.replies)
    assert [(f.request_id, f.reason) for f in report.finished] == [("a", FinishReason.CANCELLED)]
    assert report.replies[0].answer.scheduler.pages_free == PAGES - 1
    assert [sampled[0] for sampled in pipe.sent[-1].sampled] == ["b"]


def test_cancelling_what_is_not_in_flight_says_nothing() -> None:
    pipe = ScriptedPipe([Cancel("a", FinishReason.CANCELLED)])
    make_loop(pipe).run()
    assert pipe.sent == []


def test_a_refused_request_ends_with_an_error_and_the_others_go_on() -> None:
    pipe = ScriptedPipe([submit("big", prompt_len=60, max_tokens=60), submit("a", max_tokens=1)])
    make_loop(pipe).run()
    first, second = pipe.sent
    (refused,) = first.finished
    assert (refused.request_id, refused.reason) == ("big", FinishReason.ERROR)
    assert "context" in refused.detail
    assert [f.request_id for f in second.finished] == ["a"]


def test_a_question_without_an_answer_says_why() -> None:
    pipe = ScriptedPipe([Ask(3, Explain("nobody"))])
    make_loop(pipe).run()
    (reply,) = pipe.sent[0].replies
    assert (reply.question_id, reply.answer) == (3, None)
    assert reply.failure is Failure.NOT_FOUND
    assert "nobody" in reply.error


def test_the_last_notable_decisions_can_be_asked_for() -> None:
    pipe = ScriptedPipe(
        [submit("a", max_tokens=30), Cancel("a", FinishReason.TIMEOUT)], [Ask(1, Recent())]
    )
    make_loop(pipe).run()
    (reply,) = pipe.sent[-1].replies
    assert [(each.kind, each.request_id) for each in reply.answer] == [("expired", "a")]


def test_the_cache_is_told_of_only_while_somebody_watches() -> None:
    config = SchedulerConfig(num_pages=PAGES, context_len=64, page_size=4, prefix_caching=True)
    scheduler = Scheduler(config, LatencyModel(LatencyProfile("test", (Segment(UNBOUNDED, 1e-3),))))
    pipe = ScriptedPipe(
        [Ask(1, Prefixes()), submit("a", 1, 9)],
        [Watch(True), submit("b", 1, 13)],
        [Ask(2, Prefixes()), Ask(3, PrefixPart(0, 3))],
        [Watch(False), submit("c", 1, 13)],
    )
    make_loop(pipe, scheduler).run()
    replies = {reply.question_id: reply for report in pipe.sent for reply in report.replies}
    assert replies[1].failure is Failure.INVALID
    (batch,) = [report.cache for report in pipe.sent if report.cache is not None]
    assert len(batch.events) == 3
    assert replies[2].answer.number == batch.number
    assert not replies[2].answer.is_whole, "two pages were cached before, and are told with b's"
    assert replies[3].answer == batch.events


def test_the_compilations_that_are_told_are_those_since_it_serves() -> None:
    executor = CountingExecutor()
    executor.compilations = 3
    pipe = ScriptedPipe([Ask(1, Stats())])
    loop = EngineLoop(make_scheduler(), executor, pipe, Clock())
    executor.compilations = 5
    loop.run()
    (reply,) = pipe.sent[0].replies
    assert reply.answer.num_compilations == 2


def test_an_estimate_is_asked_for_the_present_moment() -> None:
    class Estimating(Scheduler):
        def estimate(self, asked: Estimate, now: float) -> Forecast:
            if not asked.prompt_len:
                raise ValueError("prompt_len must be at least 1")
            return Forecast(on_time=True, ttft_s=now, ttlt_s=now, ahead_s=asked.prompt_len)

    scheduler = Estimating(make_scheduler().config, make_scheduler().latency)
    pipe = ScriptedPipe(
        [Ask(number, Estimate(length, None, BEST_EFFORT)) for number, length in ((1, 5), (2, 0))]
    )
    make_loop(pipe, scheduler).run()
    answered, refused = pipe.sent[0].replies
    assert (answered.answer.ahead_s, answered.answer.ttft_s) == (5, pytest.approx(0.002))
    assert refused.error == "prompt_len must be at least 1"
    assert refused.failure is Failure.INVALID


def test_a_long_prefill_shows_signs_of_life() -> None:
    """Its chunks have no token to report; an empty report says that the engine is at work."""

    class SlowClock(Clock):
        def __call__(self) -> float:
            self.now += SIGN_OF_LIFE_S
            return self.now

    base = make_scheduler()
    scheduler = Scheduler(replace(base.config, chunk_size=8), base.latency)
    pipe = ScriptedPipe([submit("long", prompt_len=24)], [], [])
    EngineLoop(scheduler, CountingExecutor(), pipe, SlowClock()).run()
    accepted, *signs, first_token = pipe.sent
    assert accepted.news
    assert first_token.sampled
    assert len(signs) == 2
    assert not any(signs)


def test_a_decision_log_that_ends_is_told() -> None:
    full = DecisionFile(Path("/dev/full"), 0.0)
    base = make_scheduler()
    scheduler = Scheduler(base.config, base.latency, full.write)
    pipe = ScriptedPipe([submit("a")], [])
    EngineLoop(scheduler, CountingExecutor(), pipe, Clock(), full).run()
    (told,) = [report.notices for report in pipe.sent if report.notices]
    assert "No space left" in told[0]
    assert any(report.sampled for report in pipe.sent)


def test_a_broken_executor_ends_the_loop() -> None:
    """The process reports it and exits; nothing goes on with a state that nobody knows."""

    class Broken:
        compilations = 0

        def launch(self, plan: Plan) -> Done:
            raise RuntimeError("out of memory")

    loop = EngineLoop(make_scheduler(), Broken(), ScriptedPipe([submit("a")]), Clock())
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.run()


# Looking ahead


class Watched:
    """An executor whose iterations end when their tokens are asked for. Token n of each request is
    n; `log` tells what happened in which order.
    """

    compilations = 0

    def __init__(self, log: list[str]) -> None:
        self._log = log
        self._num_launched = 0

    def launch(self, plan: Plan) -> Watched.Flight:
        self._num_launched += 1
        self._log.append(f"launch {self._num_launched}")
        tokens = [Token(s.num_output + 1) for s in plan.sampling]
        return Watched.Flight(self._num_launched, tokens, self._log)

    class Flight:
        def __init__(self, number: int, tokens: list[Token], log: list[str]) -> None:
            self._number, self._tokens, self._log = number, tokens, log

        def tokens(self) -> list[Token]:
            self._log.append(f"tokens {self._number}")
            return self._tokens


class LoggingPipe(ScriptedPipe):
    def __init__(self, log: list[str], *batches: Sequence[Command]) -> None:
        super().__init__(*batches)
        self._log = log

    def receive(self, timeout_s: float | None) -> list[Command]:
        commands = super().receive(timeout_s)
        self._log += [f"receive {type(c).__name__}" for c in commands]
        return commands

    def send(self, report: Report) -> None:
        super().send(report)
        self._log += [f"send {s[0]}{s[1]}" for s in report.sampled]
        self._log += [f"end {f.request_id} {f.reason.value}" for f in report.finished]


def look_ahead(*batches: Sequence[Command]) -> tuple[list[str], LoggingPipe]:
    """What happened until the front end was gone, and the pipe."""
    log: list[str] = []
    pipe = LoggingPipe(log, *batches)
    EngineLoop(make_scheduler(), Watched(log), pipe, Clock(), looks_ahead=True).run()
    return log, pipe


def test_tokens_are_awaited_and_sent_once_the_next_iteration_is_launched() -> None:
    """The last is known to be the last before it comes: nothing is launched in vain."""
    log, pipe = look_ahead([submit("a", max_tokens=3)], *[[]] * 4)
    assert log == [
        *("receive Submit", "launch 1"),
        *("launch 2", "tokens 1", "send a1"),
        *("launch 3", "tokens 2", "send a2"),
        *("tokens 3", "send a3", "end a length"),
    ]
    # Nothing in flight: it waits for the pipe again, as it did at first.
    assert pipe.timeouts == [None, 0.0, 0.0, 0.0, 0.0, None]


def test_what_is_cancelled_while_a_token_is_in_flight_gets_no_token_any_more() -> None:
    log, _ = look_ahead(
        [submit("a", max_tokens=9), submit("b", max_tokens=3)],
        [],
        [Cancel("a", FinishReason.CANCELLED)],
        *[[]] * 3,
    )
    assert log == [
        *("receive Submit", "receive Submit", "launch 1"),
        *("launch 2", "tokens 1", "send a1", "send b1"),
        *("receive Cancel", "end a cancelled"),
        *("launch 3", "tokens 2", "send b2"),
        *("tokens 3", "send b3", "end b length"),
    ]


def test_a_stop_token_ends_a_request_though_the_next_token_is_being_computed() -> None:
    stopping = submit("a", max_tokens=9)
    sampling = replace(stopping.request.sampling, stop_token_ids=frozenset({2}))
    stopping = Submit(replace(stopping.request, sampling=sampling))
    log, pipe = look_ahead([stopping], *[[]] * 5)
    assert log == [
        *("receive Submit", "launch 1"),
        *("launch 2", "tokens 1", "send a1"),
        *("launch 3", "tokens 2", "send a2", "end a stop"),
        "tokens 3",
    ]
    assert pipe.timeouts[-1] is None


def test_a_front_end_that_goes_ends_the_loop_with_an_iteration_in_flight() -> None:
    log, _ = look_ahead([submit("a", max_tokens=9)], [])
    assert log[-3:] == ["launch 2", "tokens 1", "send a1"]


def test_an_executor_that_breaks_in_flight_ends_the_loop() -> None:
    class Breaking(Watched.Flight):
        def tokens(self) -> list[Token]:
            raise RuntimeError("out of memory")

    class Broken(Watched):
        def launch(self, plan: Plan) -> Watched.Flight:
            return Breaking(1, [], [])

    pipe = ScriptedPipe([submit("a")], [])
    loop = EngineLoop(make_scheduler(), Broken([]), pipe, Clock(), looks_ahead=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.run()


def test_an_iteration_in_flight_lasts_from_the_end_of_the_last_one() -> None:
    """A plan is made for the instant at which the one in flight is expected to end, and what the
    latency model learns is one iteration, not two.
    """
    told: list[tuple[float, float]] = []

    class Telling(Scheduler):
        def plan(self, now: float) -> Plan | None:
            told.append((clock.now, now))
            return super().plan(now)

    class Learning(LatencyModel):
        def observe(self, work: Work, actual_s: float) -> None:
            observed.append(actual_s)

    observed: list[float] = []
    clock = Clock()
    profile = LatencyProfile("test", (Segment(UNBOUNDED, 0.05),))
    scheduler = Telling(make_scheduler().config, Learning(profile))
    pipe = ScriptedPipe([submit("a", max_tokens=3)], *[[]] * 4)
    EngineLoop(scheduler, Watched([]), pipe, clock, looks_ahead=True).run()
    # Each reading of the clock is 1 ms on: the first two are at waking and at the command.
    assert told[0] == (pytest.approx(0.004), pytest.approx(0.004))
    assert told[1] == (pytest.approx(0.005), pytest.approx(0.054))  # begun at 4, expected at 54 ms
    assert told[2] == (pytest.approx(0.007), pytest.approx(0.056))  # begun at 6 ms
    assert observed == [pytest.approx(0.002)] * 3


class Machine:
    """A clock, and an executor whose iterations take `seconds` of it."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds
        self.compilations = 0

    def __call__(self) -> float:
        return self.now

    def launch(self, plan: Plan) -> Done:
        self.now += self.seconds
        return Done([Token(1) for _ in plan.sampling])


class PipeWithPauses(ScriptedPipe):
    """Each wait for ever takes ten seconds."""

    def __init__(self, clock: Machine, *batches: Sequence[Command]) -> None:
        super().__init__(*batches)
        self._machine = clock

    def receive(self, timeout_s: float | None) -> list[Command]:
        if timeout_s is None:
            self._machine.now += 10.0
        return super().receive(timeout_s)


def test_a_machine_that_becomes_slow_shows_though_predictions_follow_it() -> None:
    """Half as fast as its profile says, from the second request on. What iterations are predicted
    to take is soon what they take, so only the speed tells.
    """
    machine = Machine(1e-3)  # as the profile of `make_scheduler` has it
    again: list[list[Command]] = [[]] * 61
    ask: list[Command] = [Ask(1, Stats())]
    pipe = PipeWithPauses(machine, [submit("a", 60)], *again, ask, [submit("b", 60)], *again, ask)
    scheduler = make_scheduler()
    scheduler.latency.SPEED_S = 0.02  # of computing, instead of 20 seconds
    loop = EngineLoop(scheduler, machine, pipe, machine)
    while not any(report.replies for report in pipe.sent):
        loop.step()
    machine.seconds = 2e-3
    loop.run()
    before, after = (r.answer for report in pipe.sent for r in report.replies)
    assert before.scheduler.speed == pytest.approx(1.0)
    assert after.scheduler.speed == pytest.approx(0.5, rel=0.05)
    assert scheduler.latency.predict(Work(1, 10)) == pytest.approx(2e-3, rel=0.1)
    assert before.busy_s == pytest.approx(0.060)
    assert after.busy_s == pytest.approx(0.060 + 0.120)
    counts = after.scheduler.iterations
    assert (counts.total, sum(counts.numbers)) == (pytest.approx(0.180), 120)


def test_busy_time_is_all_time_but_that_of_waiting_for_work() -> None:
    """Ten seconds before the first request and after the last, and none between iterations."""
    machine = Machine(0.5)
    pipe = PipeWithPauses(
        machine, [submit("a", 4)], [Ask(1, Stats())], [], [], [], [Ask(2, Stats())]
    )
    EngineLoop(make_scheduler(), machine, pipe, machine).run()
    first, last = (r.answer for report in pipe.sent for r in report.replies)
    assert (first.busy_s, last.busy_s) == (pytest.approx(0.5), pytest.approx(2.0))
