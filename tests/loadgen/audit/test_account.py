"""Every arrival has one fate, whatever the log is like; and for whose sake who came to harm."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.deciding.entries import Unserved
from engine.deciding.outcome import Fate
from engine.deciding.request import key_of
from engine.decision_lines import BadLog
from engine.decision_log import DecisionLogReader, files_of
from engine.driving.decision_file import DecisionFile
from loadgen.audit import cells
from loadgen.audit.account import Account, Ended
from loadgen.audit.cells import OTHERS, Cell, Harm, Names, rolled_up
from loadgen.audit.periods import DAY_S, MOST_STEPS, Periods, Span, total
from loadgen.audit.sake import sakes
from tests.engine.deciding.parts import deadline, make_request
from tests.loadgen.audit import logs
from tests.loadgen.audit.logs import BEGAN, Sender

FLOOD = [
    Sender("acme", 1.0, to_s=40.0),
    Sender("flood", 6.0, to_s=20.0, prompt=3000, application="crawl"),
]


def read(*paths: Path) -> tuple[Account, list[Ended]]:
    account = Account()
    ended = [e for path in paths for e in account.read(DecisionLogReader(files_of(path)))]
    return account, ended


def whole(account: Account) -> Cell:
    ((_, cell),) = rolled_up(account.cells, ())
    return cell


def test_who_is_late_by_a_flood_was_late_for_its_sake(tmp_path: Path) -> None:
    """First come first served: whoever comes behind a flood waits for it, and for no one else."""
    sent = logs.arrivals(FLOOD, {})
    logs.write(tmp_path / "log", sent, policy="fcfs")
    account, ended = read(tmp_path / "log")
    assert len(ended) == len(sent)
    by_tenant = dict(sakes(account.cells, account.groups, ("tenant",)))
    ((acme, sake),) = [(w, s) for w, s in by_tenant.items() if w.tenant == "acme"]
    assert sake.suffered.count > 20
    assert sake.others_s > 4 * sake.own_s
    assert max(sake.others, key=sake.others.__getitem__) == ("flood", "chat")
    assert sake.less_s == 0.0 == sake.more_s  # both are chats
    assert sake.own_s + sake.others_s + sake.idle_s == pytest.approx(
        sake.suffered.waited_s, rel=1e-3
    )
    assert dict(sakes(account.cells, account.groups, ("application",)))[
        acme._replace(tenant="", application="crawl")
    ].suffered.count == sum(e.logged.tenant == "flood" and bool(e.harms) for e in ended)


def test_relegations_are_told_with_the_importance_of_what_went_before(tmp_path: Path) -> None:
    sent = logs.arrivals(
        [Sender("acme", 6.0, prompt=3000, to_s=30.0), Sender("b", 2.0, logs.REPORT, to_s=30.0)], {}
    )
    logs.write(tmp_path / "log", sent)
    account, _ = read(tmp_path / "log")
    found = dict(sakes(account.cells, account.groups, ("tenant",), Harm.RELEGATED))
    (sake,) = [sake for who, sake in found.items() if who.tenant == "b"]
    assert sake.suffered.count > 0
    assert sake.more_s > 0.0 == sake.less_s  # chats matter more than reports


def test_figures_add_up_over_rotated_files(tmp_path: Path) -> None:
    sent = logs.arrivals(FLOOD, {"acme": 1.0})
    logs.write(tmp_path / "one", sent)
    logs.write(tmp_path / "several", sent, most_bytes=100_000)
    assert len(files_of(tmp_path / "several")) > 3
    one, several = read(tmp_path / "one")[0], read(tmp_path / "several")[0]
    assert {w: c.fates for w, c in one.cells.items()} == {
        w: c.fates for w, c in several.cells.items()
    }
    assert list(one.work) == pytest.approx(list(several.work))
    assert sum(one.work) + one.idle_s == pytest.approx(one.ends_at - one.begins_at)
    for periods in (one.periods.days, one.periods.hours, one.periods.steps):
        spans = [total(each) for each in periods.values()]
        assert sum(span.arrived for span in spans) == len(sent)
        assert (
            sum(span.missed for span in spans)
            == whole(one).num_judged - whole(one).fates[Fate.ON_TIME]
        )
        assert sum(span.work_s for span in spans) == pytest.approx(sum(one.work))


def test_several_engines_are_one_account(tmp_path: Path) -> None:
    for name in ("a", "b"):
        logs.write(tmp_path / name, logs.arrivals(FLOOD[:1], {}))
    once, twice = read(tmp_path / "a")[0], read(tmp_path / "a", tmp_path / "b")[0]
    assert whole(twice).num_arrived == 2 * whole(once).num_arrived
    assert sum(twice.work) == pytest.approx(2 * sum(once.work))


def test_refusals_and_floods_of_them_are_counted(tmp_path: Path) -> None:
    one = make_request(key_of("acme", "x"), 10, 5, targets=deadline(3.0), tenant="acme")
    many = make_request(key_of("flood", ""), 10, 5, targets=deadline(3.0), tenant="flood")
    calls = [
        Unserved(one, Fate.REFUSED, "queue_full", "", 1.0),
        Unserved(many, Fate.REFUSED, "queue_full", "", 2.0, 500),
        Unserved(many, Fate.EXPIRED, "timeout", "", 2.0, 7),
    ]
    logs.write(tmp_path / "log", [], refused=calls)
    account, _ = read(tmp_path / "log")
    assert whole(account).fates == {Fate.REFUSED: 501, Fate.EXPIRED: 7}
    by_tenant = {who.tenant: cell for who, cell in rolled_up(account.cells, ("tenant",))}
    assert by_tenant["flood"].num(Harm.REFUSED) == 500
    assert by_tenant["flood"].num(Harm.ANY) == 507
    assert by_tenant["flood"].harms[Harm.ANY].num_seen == 0
    assert by_tenant["acme"].harms[Harm.REFUSED].examples[0].request_id == "x"


def test_an_engine_that_was_lost_leaves_ends_untold_and_streams_nowhere(tmp_path: Path) -> None:
    """What decodes when its process is lost takes none of the time after that."""
    sent = logs.arrivals([Sender("acme", 2.0, to_s=20.0)], {})
    logs.write(tmp_path / "log", sent)
    lines = (tmp_path / "log").read_text().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if i > 100 and '"first_token"' in line)
    (tmp_path / "log").write_text("".join(lines[: cut + 1]))
    again = DecisionFile(tmp_path / "log", BEGAN, logs.described({}, started=BEGAN + 1000.0))
    again.write({"kind": "held", "request_id": "?", "tenant": "", "detail": "", "at": 1000.0})
    again.flush()
    account, _ = read(tmp_path / "log")
    assert account.num_restarts == 1
    assert whole(account).fates[None] > 0
    assert account.idle_s > 900.0


KINDS = [
    "arrived",
    "chunk",
    "first_token",
    "relegated",
    "preempted",
    "finished",
    "refused",
    "flood",
]
ENTRIES = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(0, 3),  # whose
        st.integers(0, 4),  # which
        st.sampled_from([each.value for each in Fate]),
        st.floats(0.0, 100.0),
    ),
    max_size=40,
)


def entry(kind: str, tenant: int, number: int, fate: str, at: float) -> dict[str, Any]:
    asked = {"tier": "chat", "importance": "normal", "prompt_tokens": 10, "max_tokens": 5}
    base = {"request_id": f"r{number}", "tenant": f"t{tenant}", "detail": "", "at": at}
    match kind:
        case "flood":
            many = {"kind": "refused", "count": 3, "since": at, "result": fate, "reason": "x"}
            return {**base, **asked, **many, "request_id": ""}
        case "arrived":
            return {**base, **asked, "kind": kind}
        case "chunk":
            sizes = {"start": 0, "tokens": 10, "known": 10, "batch_tokens": 10}
            return {**base, **sizes, "kind": kind, "took_s": 0.5}
        case "finished" | "refused":
            return {**base, "kind": kind, "result": fate, "reason": "x"}
    return {**base, "kind": kind}


@given(ENTRIES)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_every_arrival_has_one_fate_whatever_the_log_tells(
    tmp_path: Path, told: list[tuple[str, int, int, str, float]]
) -> None:
    """Ids come twice, ends without arrivals, streams that never began: each arrival counts once."""
    path = tmp_path / "log"
    path.unlink(missing_ok=True)
    file = DecisionFile(path, BEGAN, logs.described({"t0": 1.0}))
    entries = [entry(*each) for each in sorted(told, key=lambda each: each[4])]
    for each in entries:
        file.write(each)
    file.flush()
    file.close()
    account, ended = read(path)
    num_arrived = sum(e["kind"] == "arrived" for e in entries) + 3 * sum(
        "count" in e for e in entries
    )
    sums = Cell()
    for _, cell in rolled_up(account.cells, ("tenant",)):
        sums.merge(cell)
    assert sums.num_arrived == num_arrived == sum(e.logged.count for e in ended)
    assert sums.fates == sum((Counter(c.fates) for c in account.cells.values()), Counter())
    assert not entries or sum(account.work) + account.idle_s == pytest.approx(
        account.ends_at - account.begins_at, abs=1e-6
    )


def test_a_torn_line_is_left_out_and_a_foreign_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "log"
    logs.write(path, logs.arrivals([Sender("a", 1.0, to_s=10.0)], {}))
    path.write_bytes(path.read_bytes()[:-20])
    account, _ = read(path)
    assert account.num_torn == 1
    assert whole(account).fates[None] == 1
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    with pytest.raises(BadLog, match=r"log, line 1: "):
        read(path)


def test_names_that_callers_choose_do_not_grow_without_bound() -> None:
    names = Names(2)
    names.keep(["mine"])
    assert [names.of(each) for each in ("a", "b", "c", "mine", "a")] == [
        "a",
        "b",
        OTHERS,
        "mine",
        "a",
    ]
    assert cells.MOST_NAMES == 30


def test_a_long_log_has_longer_steps_and_the_same_sums() -> None:
    periods = Periods()
    for hour in range(24 * 40):
        periods.add(hour * 3600.0, "a", Span(arrived=1, work_s=2.0))
    assert len(periods.steps) <= MOST_STEPS
    assert periods.step_s == 6 * 3600
    assert len(periods.days) == 40
    assert sum(total(each).work_s for each in periods.steps.values()) == 2.0 * 24 * 40
    assert [periods.hours[hour]["a"].arrived for hour in (0, 23)] == [40, 40]
    assert min(periods.days) * DAY_S == 0


def test_steps_without_arrivals_count_as_steps() -> None:
    """Else the charts of a log of a few requests in years would have millions of points."""
    periods = Periods()
    for year in range(4):
        periods.add(1e9 + year * 365 * DAY_S, "a", Span(arrived=1))
    assert max(periods.steps) - min(periods.steps) < MOST_STEPS
    assert sum(total(each).arrived for each in periods.steps.values()) == 4
