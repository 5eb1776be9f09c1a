"""Sweeps, the search for capacity and comparisons, on a target whose behaviour is known: one server
that takes the same time for every request, first come first served, in virtual time.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import pytest

from loadgen import interrupts
from loadgen.scoring.modes import (
    Measurement,
    NotMeasured,
    Search,
    compare,
    measure,
    pinned,
    search_capacity,
    sweep,
)
from loadgen.scoring.summary import Measuring
from loadgen.targets.record import Record
from loadgen.targets.target import End, Progress, Run, Target, Watch
from loadgen.workload.plan import Arrivals, PlannedRequest, Workload
from loadgen.workload.served import TargetInfo
from loadgen.workload.traces import Row
from niyama.client.values import Importance, Targets, Tier
from tests.loadgen.examples import CHAT, INFO, REPORT, record, workload

SERVICE_S = 0.05  # capacity: 20 requests/s


@dataclass
class FifoTarget:
    """`lost_after`: the instant at which it dies."""

    service_s: float = SERVICE_S
    lost_after: float = float("inf")
    policy: str = "fifo"
    tiers: tuple[Tier, ...] = INFO.tiers

    def info(self) -> TargetInfo:
        return replace(INFO, policy=self.policy, tiers=self.tiers)

    def run(self, requests: Iterable[PlannedRequest], watch: Watch) -> Run:
        free_at, records = 0.0, []
        for request in requests:
            if request.at > self.lost_after:
                return Run(records, free_at, End.TARGET_LOST, "lost")
            free_at = max(free_at, request.at) + self.service_s
            records.append(record(request, [free_at] * request.output_len))
        watch(Progress(free_at, len(records), 0, len(records), 0))
        return Run(records, free_at)


def measuring(target: Target) -> Callable[[Workload, str], Measurement]:
    return lambda load, name: measure(target, target.info(), load, Measuring(), name=name)


LONG = workload((("standard", 1.0, REPORT),), duration_s=200.0)
TIGHT = workload((("interactive", 1.0, CHAT),), duration_s=200.0)


def test_a_sweep_shows_attainment_fall_as_the_rate_passes_capacity() -> None:
    done = sweep(measuring(FifoTarget()), TIGHT, [5.0, 15.0, 25.0])
    assert [each.name for each in done] == ["5/s", "15/s", "25/s"]
    light, busy, over = (each.summary.total.attainment or 0.0 for each in done)
    assert light > 0.999
    assert light >= busy > 0.95
    assert over < 0.1


def test_a_sweep_stops_where_the_target_is_lost() -> None:
    done = sweep(measuring(FifoTarget(lost_after=100.0)), LONG, [5.0, 15.0])
    assert [each.summary.end for each in done] == [End.TARGET_LOST]


def test_the_search_finds_a_known_capacity() -> None:
    """Utilisation must stay below 1; at 10 s of patience it may come close to it. In 200 s chance
    brings up to 3 % fewer arrivals than planned.
    """
    capacity, done = search_capacity(
        measuring(FifoTarget()), LONG, Search(guess=3.0, precision=0.02)
    )
    assert 17.5 < capacity.passed < capacity.failed < 21.2
    assert len({each.name for each in done}) == len(done)


def test_a_long_deadline_does_not_pass_for_capacity() -> None:
    """With an hour of patience nothing is late in 200 s at any rate: the backlog decides."""
    patient = workload((("batch", 1.0, replace(REPORT, ttlt=3600.0)),), duration_s=200.0)
    capacity, _ = search_capacity(measuring(FifoTarget()), patient, Search(guess=10.0, repeats=1))
    assert 18.0 < capacity.passed < 22.5


def test_a_replay_is_measured_while_its_trace_lasts() -> None:
    """1,000 rows, one a second: at 25/s they last 40 s, and a server of 20/s is left behind. A
    window as long as the trace was would be empty for the most part, and no backlog seen in it.
    """
    rows = tuple(Row(float(n), 10, 3) for n in range(1000))
    patient = workload((("batch", 1.0, replace(REPORT, ttlt=3600.0)),), duration_s=1000.0)
    replayed = replace(patient, arrivals=Arrivals(None, replay=rows))
    (over,) = sweep(measuring(FifoTarget()), replayed, [25.0])
    assert over.summary.requested_rps == pytest.approx(25.0)
    assert over.summary.backlog_growth == pytest.approx(0.2, rel=0.05)
    capacity, _ = search_capacity(measuring(FifoTarget()), replayed, Search(guess=2.0, repeats=1))
    assert 20.0 <= capacity.passed < 22.5


def test_a_search_stops_at_a_run_that_says_nothing() -> None:
    with pytest.raises(NotMeasured, match="lost"):
        search_capacity(measuring(FifoTarget(lost_after=1.0)), LONG, Search(guess=5.0))


@pytest.mark.parametrize(
    "bad", [{"guess": 0.0}, {"precision": 0.0}, {"max_misses": 1.0}, {"repeats": 0}]
)
def test_a_search_states_what_it_needs(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"search needs|at least once"):
        Search(**{"guess": 1.0, **bad})  # type: ignore[arg-type]  # test values


def test_a_comparison_builds_its_workload_once() -> None:
    """From the first contender; the second gets the same requests, whatever its tiers: where it has
    the same it is named them, and else the targets.
    """
    (other,) = (replace(tier, targets=Targets(ttlt=9.0)) for tier in INFO.tiers[:1])
    targets = {
        "a": FifoTarget(policy="one"),
        "b": FifoTarget(policy="two", service_s=0.1, tiers=(other, *INFO.tiers[1:])),
    }
    built: list[str] = []

    def build(info: TargetInfo) -> Workload:
        built.append(info.policy)
        return TIGHT

    @contextlib.contextmanager
    def opened(name: str) -> Iterator[Target]:
        yield targets[name.partition("=")[0]]

    done = compare(
        opened,
        ["a=somewhere", "b"],
        build,
        lambda target, info, load, name: [measuring(target)(load, name)],
    )
    assert built == ["one"]
    assert [each.name for each in done] == ["a", "b"]
    assert [each.summary.target.policy for each in done] == ["one", "two"]
    one, two = ([record.request for record in each.records] for each in done)
    assert [replace(request, explicit=True) for request in one] == two
    assert not any(request.explicit for request in one)


def test_pinned_requests_carry_the_importance_of_their_tier() -> None:
    load = pinned(TIGHT, INFO)
    assert load.tiers[0].importance == {Importance.HIGH: 1.0}
    own = replace(load.tiers[0], importance={Importance.LOW: 1.0})
    assert pinned(replace(load, tiers=(own,)), INFO).tiers[0].importance == {Importance.LOW: 1.0}


class Signalling(list[Record]):
    """Records during whose summing up another signal comes."""

    def __iter__(self) -> Iterator[Record]:
        signal.raise_signal(signal.SIGHUP)
        return super().__iter__()


class Interrupted:
    """A target that a signal ends."""

    def info(self) -> TargetInfo:
        return INFO

    def run(self, requests: Iterable[PlannedRequest], watch: Watch) -> Run:
        done = Signalling(record(request) for request in requests)
        return Run(done, 1.0, End.INTERRUPTED, "interrupted", signal.SIGHUP)


def test_a_second_signal_ends_no_summing_up() -> None:
    """Which takes as long as a second, after a long run."""
    with interrupts.handled(interrupts.interrupt):
        done = measure(Interrupted(), INFO, workload(), Measuring())
        with pytest.raises(interrupts.Interrupted):
            next(iter(done.records))
    assert done.interrupted_by == signal.SIGHUP
    assert len(done.records) > 0
