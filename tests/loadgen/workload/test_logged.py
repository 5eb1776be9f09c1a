"""A decision log as a load: what comes again is what came, and guesses are counted."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.deciding.entries import Unserved
from engine.deciding.outcome import Fate
from engine.deciding.record import Record
from engine.deciding.request import Request, Sampling, key_of
from engine.decision_lines import BadLog
from engine.tiers import EXPLICIT
from loadgen.scoring.against import replayed
from loadgen.scoring.summary import Window
from loadgen.targets import profiles
from loadgen.targets.decisions import DecisionLines
from loadgen.targets.simulated import Setup, SimulatedTarget
from loadgen.workload.logged import (
    COPIED_WITHIN_S,
    MOST_REQUESTS,
    OTHERS,
    Log,
    load,
    scaled,
)
from loadgen.workload.plan import PlannedRequest
from loadgen.workload.spec import Spec, build
from niyama.client.values import Importance, Targets

TIERS = {tier.name: tier.targets for tier in profiles.PAPER_TIERS}
NO_FIXTURE = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def logged(path: Path, requests: list[PlannedRequest], **setup: object) -> Log:
    """What the log of a simulation of these requests says."""
    asked = Setup(profiles.A100, decision_log=path, **setup)  # type: ignore[arg-type] # any field
    SimulatedTarget(asked).run(requests, lambda progress: None)
    load.cache_clear()
    return load((path,))


def asked(request: PlannedRequest) -> PlannedRequest:
    """What a request asks for, without what only its end tells."""
    return replace(request, output_len=0, cancel_after=None, leaves_s=None)


SECONDS = st.integers(1, 10**8).map(lambda n: n / 1e6)
OWN = st.one_of(st.builds(Targets, ttlt=SECONDS), st.builds(Targets, ttft=SECONDS, tbt=SECONDS))


@st.composite
def planned(draw: st.DrawFn) -> list[PlannedRequest]:
    at, requests = 0.0, []
    for index in range(draw(st.integers(1, 15))):
        tier = draw(st.sampled_from([*TIERS, EXPLICIT]))
        output = draw(st.integers(1, 300))
        is_own = tier == EXPLICIT
        requests.append(
            PlannedRequest(
                index,
                round(at, 6),
                tier,
                draw(OWN) if is_own else TIERS[tier],
                draw(st.integers(1, 4000)),
                output,
                explicit=is_own,
                importance=draw(st.sampled_from([None, Importance.LOW, Importance.HIGH])),
                tenant=draw(st.sampled_from(["", "acme", 'say "so"'])),
                application=draw(st.sampled_from(["", "writer"])),
                cancel_after=draw(st.sampled_from([None, None, 1 + output // 2])),
                timeout_s=draw(st.sampled_from([None, None, 0.5, 100.0])),
            )
        )
        at += draw(st.sampled_from([0.0, 0.001, 0.25, 7.0]))
    return requests


@NO_FIXTURE
@given(planned())
def test_a_replay_of_the_log_of_a_replay_is_the_same_arrivals(
    tmp_path: Path, requests: list[PlannedRequest]
) -> None:
    first = logged(tmp_path / "first", requests)
    again = logged(tmp_path / "again", [*first.planned(build(Spec(logs=first.paths), info()))])
    pairs = zip(first.requests, again.requests, strict=True)
    assert all(asked(one) == asked(other) for one, other in pairs)
    for one, other, *fates in zip(
        first.requests, again.requests, first.fates, again.fates, strict=True
    ):
        if all(fate in (Fate.ON_TIME, Fate.LATE) for fate in fates) and not one.leaves_s:
            assert one.output_len == other.output_len
    of_old = sorted(requests, key=lambda request: request.at)
    for new, old in zip(first.requests, of_old, strict=True):
        assert (new.at, new.tier, new.prompt_len) == (old.at, old.tier, old.prompt_len)
        assert (new.tenant, new.application) == (old.tenant, old.application)
        assert new.timeout_s == old.timeout_s
        assert new.importance in (old.importance, Importance.NORMAL)


def info() -> object:
    return SimulatedTarget(Setup(profiles.A100)).info()


def requests_of(groups: list[str], gaps: list[float]) -> list[PlannedRequest]:
    at, made = 0.0, []
    for index, (tenant, gap) in enumerate(zip(groups, gaps, strict=False)):
        made.append(PlannedRequest(index, at, "chat", Targets(), 10, 10, tenant=tenant))
        at += gap
    return made


@NO_FIXTURE
@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=40),
    st.lists(st.sampled_from([0.0, 0.01, 5.0]), min_size=40, max_size=40),
    st.floats(0.05, 4.0),
    st.integers(0, 5),
)
def test_at_any_instant_a_scaled_load_has_had_so_many_times_the_requests_of_each_group(
    groups: list[str], gaps: list[float], factor: float, seed: int
) -> None:
    """Give or take one, so that bursts stay bursts; and every copy is near its original."""
    requests = requests_of(groups, gaps)
    made = list(scaled(requests, factor, seed))
    assert [each.at for each in made] == sorted(each.at for each in made)
    assert [each.index for each in made] == list(range(len(made)))
    instants = {request.at for request in requests}
    for at in instants:
        before = Counter(r.tenant for r in requests if r.at < at)
        now = Counter(r.tenant for r in made if r.at < at)
        assert all(abs(now[tenant] - factor * before[tenant]) < 1 + 1e-9 for tenant in "abc")
    for each in made:
        assert any(0 <= each.at - at <= COPIED_WITHIN_S for at in instants)


def test_a_load_that_is_not_scaled_is_as_it_was() -> None:
    requests = requests_of(["a", "b", "a"], [0.5, 0.5, 0.5])
    assert list(scaled(requests, 1.0, 7)) == requests


def lines(path: Path) -> Record:
    """A record whose entries go to the file of a simulation."""
    config = Setup(profiles.A100).scheduler_config()
    writer = DecisionLines(path, config, profiles.A100, {"acme": 1.0})
    record = Record(0, writer.write)
    record.close_file = writer.close  # type: ignore[attr-defined]
    return record


def test_what_the_log_cannot_say_is_guessed_and_counted(tmp_path: Path) -> None:
    """Of a flood each comes by itself, who was never read is left out, and of invented tenants only
    the largest are told apart.
    """
    path = tmp_path / "log"
    record = lines(path)

    def refuse(tenant: str, at: float, tier: str = "batch", count: int = 1) -> None:
        request = Request(
            key_of(tenant, f"r{at}"),
            range(7),
            Sampling(max_tokens=9),
            at,
            tier=tier,
            tenant=tenant,
            target_source="tier",
        )
        record.unserved(Unserved(request, Fate.REFUSED, "queue_full", "", at + 2.0, count))

    refuse("acme", 100.0, count=4)
    refuse("", 100.5, count=3)
    refuse("", 101.0, tier="unknown", count=50)
    for i in range(60):
        refuse(f"invented-{i}", 110.0 + i)
        refuse(f"invented-{i % 40}", 110.5 + i)
    record.close_file()  # type: ignore[attr-defined]
    load.cache_clear()
    log = load((path,))
    acme = [each for each in log.requests if each.tenant == "acme"]
    assert [each.at for each in acme] == [0.0, 0.5, 1.0, 1.5]
    assert {(each.prompt_len, each.output_len, each.stated) for each in log.requests} == {(7, 9, 9)}
    assert (log.guesses.outputs, log.guesses.prompts, log.guesses.unread) == (127, 127, 50)
    tenants = {each.tenant for each in log.requests}
    assert OTHERS in tenants
    assert "" not in tenants, "of a flood nobody knows that it named no tenant"
    assert len(tenants) <= 52
    workload = build(Spec(logs=(path,)), info())  # type: ignore[arg-type]
    then = replayed(workload, Window(0.0, 1e9))
    assert then is not None
    assert then.happened[-1].fates == {Fate.REFUSED: 127}
    assert then.happened[-1].attainment == 0.0
    assert then.factor == 1.0


def test_of_a_flood_without_end_only_so_many_are_read_as_are_wanted(tmp_path: Path) -> None:
    path = tmp_path / "log"
    record = lines(path)
    for i, count in enumerate((1, MOST_REQUESTS, 1)):
        request = Request(key_of("", f"r{i}"), range(7), Sampling(), 100.0 + i)
        record.unserved(Unserved(request, Fate.REFUSED, "queue_full", "", 110.0, count))
    record.close_file()  # type: ignore[attr-defined]
    load.cache_clear()
    with pytest.raises(BadLog, match=f"{MOST_REQUESTS + 2} requests arrived in it, at most"):
        load((path,))
    first = [each.at for each in load((path,), most=1000).requests]
    assert len(first) == 1000
    assert first[:2] == [0.0, 1.0]
    assert first == sorted(first)


def test_outputs_of_who_has_none_are_drawn_from_its_own_kind(tmp_path: Path) -> None:
    """One expires after its first tokens: it is taken to be longer than those."""
    of_app = [
        PlannedRequest(i, float(i), "batch", TIERS["batch"], 10, 40, application="a", tenant="t")
        for i in range(5)
    ]
    last = replace(of_app[0], index=5, at=9.0, output_len=2000, timeout_s=0.3)
    log = logged(tmp_path / "log", [*of_app, last])
    assert log.fates[-1] is Fate.EXPIRED
    assert log.requests[-1].output_len == 40
    assert log.requests[-1].timeout_s == 0.3
    assert log.guesses.outputs == 1
    of_another = replace(last, tenant="u", application="b", timeout_s=0.1)
    assert logged(tmp_path / "other", [*of_app, of_another]).requests[-1].output_len == 40


def test_who_left_leaves_again(tmp_path: Path) -> None:
    """After as many tokens where nothing was overdue; after as long who had waited too long."""
    content = PlannedRequest(0, 0.0, "interactive", TIERS["interactive"], 10, 400, cancel_after=7)
    impatient = PlannedRequest(
        1, 0.0, EXPLICIT, Targets(ttlt=0.01), 4000, 400, explicit=True, leaves_s=0.05
    )
    log = logged(tmp_path / "log", [content, impatient])
    assert log.fates == (Fate.CANCELLED, Fate.LATE)
    first, second = log.requests
    assert (first.cancel_after, first.leaves_s) == (7, None)
    assert second.cancel_after is None
    assert second.leaves_s is not None
    assert second.leaves_s >= 0.05


def test_a_log_without_arrivals_is_no_load(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines(path).close_file()  # type: ignore[attr-defined]
    load.cache_clear()
    with pytest.raises(BadLog, match="log: no request arrived in it"):
        load((path,))


@pytest.mark.parametrize(
    "slowness",
    [((1e9, 3.0),), ((5.0, 1.0), (5.3, 60.0), (1e9, 1.0))],
    ids=["three times as slow", "a stall"],
)
def test_the_speed_of_the_machine_comes_again(
    tmp_path: Path, slowness: tuple[tuple[float, float], ...]
) -> None:
    requests = [
        PlannedRequest(i, i / 2, "interactive", TIERS["interactive"], 1000, 50) for i in range(20)
    ]
    log = logged(tmp_path / "log", requests, slowness=slowness)
    slowest = max(factor for _, factor in slowness)
    assert max(each.factor for each in log.speeds) > slowest / 4

    def ends(slowness: tuple[tuple[float, float], ...]) -> list[float]:
        target = SimulatedTarget(Setup(profiles.A100, slowness=slowness))
        return [each.ended_at or 0.0 for each in target.run(requests, lambda _: None).records]

    assert ends(log.speeds) == pytest.approx(ends(slowness), abs=0.05)
    assert ends(log.speeds) != pytest.approx(ends(()), abs=0.2)


def test_a_number_beyond_all_bounds_is_told_by_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines(path).close_file()  # type: ignore[attr-defined]
    with path.open("a") as file:
        entry = {
            "kind": "speed",
            "request_id": "",
            "tenant": "",
            "detail": "",
            "at": 1,
            "unix_s": 1,
        }
        file.write(json.dumps(entry | {"actual_s": 0, "profile_s": 1}) + "\n")
    load.cache_clear()
    with pytest.raises(BadLog, match="log, line 2: actual_s and profile_s"):
        load((path,))
