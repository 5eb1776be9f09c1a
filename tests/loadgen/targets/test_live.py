"""The live target against a little real server: what leaves, what is recorded, how runs end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from loadgen import interrupts
from loadgen.arguments import parse
from loadgen.targets.live import LiveTarget
from loadgen.targets.record import Outcome
from loadgen.targets.target import End, Progress, Unreachable
from loadgen.workload.plan import PlannedRequest, plan
from niyama.client import AsyncClient
from niyama.client.values import Importance, Targets
from tests.loadgen.conftest import LittleServer
from tests.loadgen.examples import REPORT, planned, workload


def target(little: LittleServer, drain_s: float = 10.0) -> LiveTarget:
    return LiveTarget(little.address, channels=2, drain_s=drain_s)


def every(interval_s: float, count: int, **fields: object) -> list[PlannedRequest]:
    return [planned(index, at=index * interval_s, **fields) for index in range(count)]


def unwatched(progress: Progress) -> None:
    pass


def once(condition: Callable[[Progress], bool], act: Callable[[], object]) -> Callable[..., None]:
    """A watch that acts the first time that the condition holds."""
    acted: list[Progress] = []

    def watch(progress: Progress) -> None:
        if not acted and condition(progress):
            acted.append(progress)
            act()

    return watch


def test_it_says_what_a_workload_needs_to_know(little: LittleServer) -> None:
    info = target(little).info()
    assert (info.name, info.policy, info.model) == (little.address, "fcfs", "little")
    assert [tier.name for tier in info.tiers] == ["interactive", "standard", "batch"]
    assert (info.vocabulary_size, info.context_length) == (1000, 512)


def test_every_planned_request_is_sent_and_recorded(little: LittleServer) -> None:
    requests = list(plan(workload(rate=200.0, duration_s=0.5)))
    run = target(little).run(iter(requests), unwatched)
    assert run.end is End.COMPLETE
    assert [record.request for record in run.records] == requests
    assert {record.outcome for record in run.records} == {Outcome.FINISHED}
    for record in run.records:
        assert len(record.token_at) == record.request.output_len
        assert record.request.at <= record.token_at[0] <= record.token_at[-1]
        assert record.ended_at is not None
        assert record.token_at[-1] <= record.ended_at
    assert run.elapsed_s == max(record.ended_at or 0.0 for record in run.records)


def test_what_was_planned_is_what_is_sent(little: LittleServer) -> None:
    first = planned(0, prompt_len=20, output_len=4, seed=9, application="chat", timeout_s=5.0)
    second = planned(1, 0.01, explicit=True, importance=Importance.LOW)
    third = planned(2, 0.02, REPORT, explicit=True)
    fourth = planned(3, 0.03, Targets(), explicit=True)
    target(little).run(iter([first, second, third, fourth]), unwatched)
    by_seed = {request.sampling.seed: request for request in little.servicer.requests}
    assert len(little.servicer.requests) == 4
    sent = by_seed[9]
    assert len(sent.input.token_ids.ids) == 20
    assert (sent.sampling.max_tokens, sent.sampling.ignore_eos) == (4, True)
    assert (sent.qos.tier, sent.qos.application) == ("interactive", "chat")
    assert {request.qos.WhichOneof("targets") for request in little.servicer.requests} == {
        None,
        "interactive",
        "deadline",
        "best_effort",
    }
    assert sum(timeout is not None for timeout in little.servicer.timeouts) == 1


def test_a_second_run_finds_nothing_of_the_first_in_a_prefix_cache(little: LittleServer) -> None:
    shared = planned(prompt_len=20, prefix=0, prefix_len=8)
    for _ in range(2):
        target(little).run(iter([shared, replace(shared, index=1, seed=5)]), unwatched)
    first, second, third, fourth = (r.input.token_ids.ids for r in little.servicer.requests)
    assert first[:8] == second[:8] != third[:8] == fourth[:8]


@pytest.mark.parametrize(
    ("acts_as", "outcome", "error"),
    [
        ("full", Outcome.REJECTED, "the queue is full"),
        ("bug", Outcome.FAILED, "a fault"),
        ("bad", Outcome.FAILED, "sampling.top_p: too large"),
        ("die 2", Outcome.FAILED, "the engine was lost"),
        ("cut", Outcome.FAILED, "the stream ended without its last event"),
    ],
)
def test_refusals_and_failures_are_recorded_and_the_run_goes_on(
    little: LittleServer, acts_as: str, outcome: Outcome, error: str
) -> None:
    little.servicer.acts_as = acts_as
    run = target(little).run(iter(every(0.01, 5)), unwatched)
    assert run.end is End.COMPLETE
    assert [(record.outcome, record.error) for record in run.records] == [(outcome, error)] * 5


def test_a_promise_is_noted_and_who_is_refused_was_told_nothing(little: LittleServer) -> None:
    (kept,) = target(little).run(iter(every(0.0, 1)), unwatched).records
    little.servicer.acts_as = "die 2"
    (lost,) = target(little).run(iter(every(0.0, 1)), unwatched).records
    little.servicer.acts_as = "full"
    (refused,) = target(little).run(iter(every(0.0, 1)), unwatched).records
    assert (kept.promised, lost.promised, refused.promised) == (True, True, None)


def test_a_relegation_is_noted(little: LittleServer) -> None:
    little.servicer.acts_as = "relegate me"
    run = target(little).run(iter(every(0.0, 1)), unwatched)
    assert run.records[0].relegated


def test_a_passed_timeout_is_told_from_other_failures(little: LittleServer) -> None:
    little.servicer.acts_as = "stay here"
    run = target(little).run(iter(every(0.0, 2, timeout_s=2.0)), unwatched)
    assert {record.outcome for record in run.records} == {Outcome.TIMED_OUT}
    assert [len(record.token_at) for record in run.records] == [1, 1]


def test_clients_that_leave_do_so_after_their_tokens(little: LittleServer) -> None:
    little.servicer.acts_as = "stay a b c d e"
    run = target(little).run(iter(every(0.0, 3, cancel_after=2)), unwatched)
    assert {record.outcome for record in run.records} == {Outcome.CANCELLED}
    assert [len(record.token_at) for record in run.records] == [2, 2, 2]


def test_clients_that_have_waited_for_so_long_leave(little: LittleServer) -> None:
    """It was overdue, so they are misses; those who get all of it before that stay."""
    little.servicer.acts_as = "stay"
    run = target(little).run(iter(every(0.0, 2, leaves_s=0.05)), unwatched)
    assert {record.outcome for record in run.records} == {Outcome.CANCELLED}
    little.servicer.acts_as = ""
    run = target(little).run(iter(every(0.0, 2, leaves_s=60.0)), unwatched)
    assert {record.outcome for record in run.records} == {Outcome.FINISHED}


def test_a_slow_server_does_not_slow_the_sending(little: LittleServer) -> None:
    """Open loop: no request ever ends, and yet every one is sent at its instant; then they are
    unfinished.
    """
    little.servicer.acts_as = "stay"
    requests = every(0.005, 50)
    run = target(little, drain_s=0.1).run(iter(requests), unwatched)
    assert [record.request for record in run.records] == requests
    assert {record.outcome for record in run.records} == {Outcome.UNFINISHED}
    assert run.end is End.COMPLETE


def test_an_unreachable_server_is_said_in_one_line() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        nobody = LiveTarget(f"127.0.0.1:{held.getsockname()[1]}")
        for ask in (nobody.info, lambda: nobody.run(iter([]), unwatched)):
            with pytest.raises(Unreachable) as caught:
                ask()
            assert str(caught.value).startswith(nobody.server)
            assert "\n" not in str(caught.value)


def test_a_server_that_dies_ends_the_run_with_what_was_recorded(little: LittleServer) -> None:
    requests = every(0.02, 3000)  # a minute, were it not for the end
    watch = once(lambda progress: progress.num_finished >= 5, little.stop)
    run = target(little).run(iter(requests), watch)
    assert run.end is End.TARGET_LOST
    assert run.problem.startswith(f"{little.address}: lost during the run: ")
    outcomes = [record.outcome for record in run.records]
    assert outcomes.count(Outcome.FINISHED) >= 5
    assert Outcome.FAILED in outcomes
    assert set(outcomes) == {Outcome.FINISHED, Outcome.FAILED}


def test_who_answers_when_asked_again_is_not_lost(little: LittleServer) -> None:
    """As where one of several front ends dies and its socket takes the first question with it."""
    little.servicer.acts_as = "die 1"

    def go_away() -> None:
        little.servicer.num_away = 2

    run = target(little).run(iter(every(0.01, 200)), once(lambda _: True, go_away))
    assert run.end is End.COMPLETE
    assert {record.outcome for record in run.records} == {Outcome.FAILED}
    assert len(run.records) == 200
    assert little.servicer.num_away == 0


def test_a_second_signal_while_the_connections_are_closed_costs_no_record(
    little: LittleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal that closes says so twice: the report was lost, with exit status 129."""
    close = AsyncClient.close

    async def close_slowly(client: AsyncClient) -> None:
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(0)  # so that it comes
        await close(client)

    monkeypatch.setattr(AsyncClient, "close", close_slowly)
    little.servicer.acts_as = "stay"
    watch = once(
        lambda progress: progress.num_sent >= 3, lambda: signal.raise_signal(signal.SIGTERM)
    )
    with interrupts.handled(interrupts.interrupt):
        run = target(little).run(iter(every(0.02, 3000)), watch)
    assert (run.end, run.interrupted_by) == (End.INTERRUPTED, signal.SIGTERM)
    assert len(run.records) >= 3


def test_ctrl_c_ends_the_run_with_what_was_recorded(little: LittleServer) -> None:
    """In flight at the interruption is neither a success nor a failure of the server."""
    requests = [
        replace(request, cancel_after=None if request.index % 2 else 1)
        for request in every(0.02, 3000)
    ]
    little.servicer.acts_as = "stay a b"
    watch = once(lambda progress: progress.num_sent >= 6, lambda: signal.raise_signal(2))
    run = target(little).run(iter(requests), watch)
    assert run.end is End.INTERRUPTED
    outcomes = [record.outcome for record in run.records]
    assert set(outcomes) == {Outcome.CANCELLED, Outcome.ABANDONED}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_request_sent_as_the_run_ends_is_recorded_like_those_before_it(
    little: LittleServer,
) -> None:
    """Nobody has begun to read its stream then."""
    little.servicer.acts_as = "stay"

    def requests() -> Iterator[PlannedRequest]:
        for request in every(0.0, 500):  # all due, so that the sender only lets others run between
            if request.index == 20:
                signal.raise_signal(signal.SIGINT)
            yield request

    run = target(little).run(requests(), unwatched)
    assert run.end is End.INTERRUPTED
    assert {record.outcome for record in run.records} == {Outcome.ABANDONED}
    assert all(record.ended_at is not None for record in run.records)


def may_go_before_others() -> bool:
    """Whether this process may lower its niceness: the kernel's own answer."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, usual - 10)
    except PermissionError:
        return False
    os.setpriority(os.PRIO_PROCESS, 0, usual)
    return True


def test_the_sender_goes_before_others_only_while_it_runs(little: LittleServer) -> None:
    """Where that is permitted; elsewhere nothing changes."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    during: list[int] = []
    watch = once(lambda _: True, lambda: during.append(os.getpriority(os.PRIO_PROCESS, 0)))
    target(little).run(iter(every(0.01, 3)), watch)
    assert during == [usual - 10 if may_go_before_others() else usual]
    assert os.getpriority(os.PRIO_PROCESS, 0) == usual


def test_progress_adds_up(little: LittleServer) -> None:
    seen: list[Progress] = []
    target(little).run(iter(every(0.01, 30)), seen.append)
    assert seen[-1].num_sent == seen[-1].num_finished == 30
    assert all(p.num_sent == p.num_in_flight + p.num_finished + p.num_failed for p in seen)


def test_every_call_shows_who_makes_the_load_and_none_is_made_twice(
    little: LittleServer, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_text("word")
    asked = parse(["--target", little.address, "--token-file", str(path)])
    live = LiveTarget(asked.target.target, connection=asked.connection)
    assert live.info().policy == "fcfs"
    little.servicer.pushbacks = ["1"]
    run = live.run(iter(every(0.0, 2)), unwatched)
    assert {record.outcome for record in run.records} == {Outcome.FINISHED, Outcome.REJECTED}
    assert set(little.servicer.tokens) == {"Bearer word"}
    assert len(little.servicer.requests) == 2


@pytest.mark.parametrize("flag", ["--token-file", "--ca"])
def test_a_server_that_cannot_be_asked_so_is_told_before_the_run(flag: str) -> None:
    asked = parse([flag, "missing"])
    with pytest.raises(ValueError, match="missing: No such file"):
        LiveTarget(asked.target.target, connection=asked.connection)


def test_the_environment_says_how_a_server_is_reached_as_it_does_to_the_client(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIYAMA_TOKEN_FILE", "token")
    monkeypatch.setenv("NIYAMA_TLS", "yes")
    assert parse([]).connection["token"] == Path("token")
    assert parse([]).connection["tls"]
    assert not parse(["--no-tls"]).connection["tls"]
    monkeypatch.setenv("NIYAMA_TLS", "perhaps")
    with pytest.raises(SystemExit):
        parse([])
    assert "NIYAMA_TLS is true or false, not 'perhaps'" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"channels": 0}, {"drain_s": -1.0}])
def test_settings_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"channel|drain"):
        LiveTarget("somewhere:1", **change)  # type: ignore[arg-type]  # test values
