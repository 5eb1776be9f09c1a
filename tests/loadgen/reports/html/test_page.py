"""What the charts show, worked out by hand: distributions, load curves, steps of time, the sentence
at the top. Eighths and quarters are exact in binary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from loadgen.reports.html.chart import Absent, Bars, Curves, Ranking
from loadgen.reports.html.curves import (
    TBT,
    TTFT,
    TTLT,
    Sample,
    cumulative,
    distribution,
    late_shares,
    latencies,
)
from loadgen.reports.html.headline import headline, sustained
from loadgen.reports.html.loads import over_loads, ranking
from loadgen.reports.html.page import Asked, page
from loadgen.reports.html.runs import evenly, views
from loadgen.reports.html.shares import attainment, distributions
from loadgen.reports.html.steps import (
    Steps,
    in_flight,
    mean_present,
    per_second,
    steps_for,
    waiting,
)
from loadgen.reports.html.timeline import over_time
from loadgen.scoring.capacity import Capacity
from loadgen.scoring.modes import Measurement
from loadgen.scoring.score import judge, score
from loadgen.targets.record import Outcome, Record
from loadgen.targets.target import End, Run, Series
from tests.loadgen.examples import CHAT, INFO, REPORT, planned, record, summarised, workload

TIERS = (("interactive", 0.5, CHAT), ("standard", 0.5, REPORT))
ASKED = Asked("run", "python -m loadgen", 0, 0.01, {"niyama": "1"}, "today")


def records(num_late: int, num: int = 8) -> list[Record]:
    """One a second: chats with tokens 0.5 s after they arrive, or 2 s where late, and a report."""
    chats = [
        record(planned(n, float(n)), [n + (2.0 if n < num_late else 0.5)] * 3) for n in range(num)
    ]
    return [*chats, record(planned(num, 0.25, REPORT, tier="standard"), [4.25] * 3)]


def measurement(
    num_late: int, contender: str = "", rate: float | None = None, end: End = End.COMPLETE
) -> Measurement:
    run = Run(records(num_late), 10.0, end, "" if end is End.COMPLETE else "lost")
    info = replace(INFO, policy=contender or "niyama")
    summary = summarised(workload(TIERS), info, run)
    return Measurement(contender, summary, run.records, contender, rate)


def test_a_distribution_steps_up_at_each_value() -> None:
    assert cumulative([1.0, 2.0, 2.0, 4.0], 8) == [
        (1.0, 0.0),
        (1.0, 1 / 8),
        (2.0, 2 / 8),
        (2.0, 3 / 8),
        (4.0, 4 / 8),
    ]
    assert cumulative([], 8) == []


def test_a_long_distribution_keeps_its_ends() -> None:
    points = cumulative(range(1000), 1000, most=11)
    assert len(points) == 12
    assert points[:2] == [(0, 0.0), (0, 0.001)]
    assert points[-1] == (999, 1.0)


def test_a_request_that_never_had_it_keeps_the_share_below_1() -> None:
    """Two of three have a first token, after 500 and 750 ms; one of them has two gaps."""
    found = [
        record(planned(0, 1.0), [1.5, 1.625, 1.875]),
        record(planned(1, 2.0), [2.75]),
        record(planned(2, 3.0), outcome=Outcome.FAILED),
    ]
    ttft = distribution("t", TTFT, [Sample("chat", "c0", found, 1.0)])
    assert ttft is not None
    assert ttft.x.label == "TTFT (ms)"
    assert list(ttft.lines[0].points) == [(500, 0.0), (500, 1 / 3), (750, 2 / 3)]
    assert [(mark.label, mark.x, mark.colour) for mark in ttft.marks] == [
        ("target 1,000 ms", 1000, "c0")
    ]
    tbt = distribution("t", TBT, [Sample("chat", "c0", found, None)])
    assert tbt is not None
    assert list(tbt.lines[0].points) == [(125, 0.0), (125, 1 / 2), (250, 1.0)]
    assert distribution("t", TTLT, [Sample("chat", "c0", found[2:], 1.0)]) is None


def test_a_common_target_is_marked_once_in_nobodys_colour() -> None:
    found = [record(planned(0), [4.0])]
    chart = distribution("t", TTFT, [Sample("a", "c0", found, 2.0), Sample("b", "c1", found, 2.0)])
    assert chart is not None
    assert [(mark.label, mark.x, mark.colour) for mark in chart.marks] == [
        ("target 2 s", 2.0, "ink")
    ]


def test_points_over_load_are_in_order_of_load_and_only_where_something_was_sent() -> None:
    late, empty = score("x", [judge(r) for r in records(2)[:8]], 8.0), score("x", [], 8.0)
    assert late_shares([(4.0, late), (2.0, late), (1.0, empty)]) == [(2.0, 0.25), (4.0, 0.25)]
    assert latencies([(4.0, late), (1.0, empty)], TTFT, "p50") == [(4.0, 0.5)]
    assert latencies([(4.0, late)], TTFT, "p99") == [(4.0, 2.0)]


@pytest.mark.parametrize(
    ("duration", "length", "num"),
    [(12.0, 0.1, 120), (12.1, 0.2, 61), (600.0, 5, 120), (0.0, 0.1, 1), (14400.0, 120, 120)],
)
def test_time_is_cut_into_steps_that_a_person_would_choose(
    duration: float, length: float, num: int
) -> None:
    steps = steps_for(duration)
    assert (steps.length_s, steps.num) == (length, num)
    assert steps.end_s >= duration


STEPS = Steps(2.0, 4)


def test_a_rate_is_a_count_per_second_and_what_is_too_late_belongs_to_the_last_step() -> None:
    assert per_second([0.0, 1.9, 2.0, 7.0, 8.0, 99.0], STEPS) == [1.0, 0.5, 0.0, 1.5]
    assert STEPS.points([1.0, 2.0, 3.0, 4.0]) == [(0, 1), (2, 2), (4, 3), (6, 4), (8, 4)]


def test_the_mean_number_present_counts_parts_of_steps() -> None:
    """[1, 5) covers half of the first step, all of the second, half of the third; [6, 7) half of
    the last; what outlasts the steps is cut off.
    """
    assert mean_present([(1.0, 5.0), (6.0, 7.0)], STEPS) == [0.5, 1.0, 0.5, 0.5]
    assert mean_present([(0.0, 99.0), (7.5, 99.0)], STEPS) == [1.0, 1.0, 1.0, 1.25]


def test_a_request_waits_until_its_first_token_or_its_end_and_is_in_flight_until_its_end() -> None:
    served, refused = record(planned(0, 1.0), [2.0, 3.0]), record(planned(1, 4.0), lag_s=0.5)
    going = replace(record(planned(2, 5.0)), ended_at=None)
    found = [served, refused, going]
    assert list(in_flight(found, 8.0)) == [(1.0, 3.0), (4.0, 4.5), (5.0, 8.0)]
    assert list(waiting(found, 8.0)) == [(1.0, 2.0), (4.0, 4.5), (5.0, 8.0)]


def test_evenly_keeps_the_ends() -> None:
    assert evenly(3, 5) == [0, 1, 2]
    assert evenly(10, 4) == [0, 3, 6, 9]


def test_the_arrivals_of_one_run_are_split_by_what_became_of_them() -> None:
    (view,) = views([measurement(num_late=2)])
    fates = next(iter(over_time(view)))
    assert isinstance(fates, Curves)
    step = fates.lines[0].points[1][0]
    totals = {line.name: sum(y for _, y in line.points[:-1]) * step for line in fates.lines}
    assert totals == pytest.approx({"on time": 7, "late": 2})


def test_what_a_target_does_not_tell_is_a_sentence() -> None:
    untold, told = (
        measurement(0),
        replace(measurement(0), series=Series(0.5, [8.0, 4.0], [1.0, 0.0])),
    )
    *_, last = over_time(views([untold])[0])
    assert last == Absent("Chunk size and queue length", "The target does not tell them.")
    *_, chunks, queue = over_time(views([told])[0])
    assert isinstance(chunks, Curves)
    assert isinstance(queue, Curves)
    assert list(chunks.lines[0].points) == [(0.0, 8.0), (0.5, 4.0), (1.0, 4.0)]
    assert list(queue.lines[0].points) == [(0.0, 1.0), (0.5, 0.0), (1.0, 0.0)]


def test_one_contender_is_drawn_by_tier_and_several_by_contender() -> None:
    (alone,) = views([measurement(2)])
    assert [chart.title for chart in distributions(alone)] == [
        "TTFT by tier",
        "TBT by tier",
        "TTLT by tier",
    ]
    (both,) = views([measurement(2, "a"), measurement(0, "b")])
    titles = [chart.title for chart in distributions(both)]
    assert titles == ["TTFT of interactive", "TBT of interactive", "TTLT of standard"]
    bars = attainment(both)[0]
    assert isinstance(bars, Bars)
    assert list(bars.groups) == ["all", "interactive", "standard"]
    assert [(each.name, list(each.values)) for each in bars.series] == [
        ("a", [7 / 9, 6 / 8, 1.0]),
        ("b", [1.0, 1.0, 1.0]),
    ]


def sweep() -> list[Measurement]:
    """Late with a: none, 1/9, 4/9; with b: none at any load."""
    lates = {"a": (0, 1, 4), "b": (0, 0, 0)}
    return [
        measurement(late, name, rate)
        for name, each in lates.items()
        for rate, late in zip((1.0, 2.0, 4.0), each, strict=True)
    ]


def lines(chart: object) -> dict[str, Sequence[tuple[float, float]]]:
    assert isinstance(chart, Curves)
    return {line.name: line.points for line in chart.lines}


def test_late_shares_over_load_are_of_all_and_of_each_tier() -> None:
    every, interactive, standard, *latency = over_loads(sweep(), 0.01)
    assert lines(every)["a"] == [
        (1.0, 0.0),
        (2.0, pytest.approx(1 / 9)),
        (4.0, pytest.approx(4 / 9)),
    ]
    assert lines(interactive)["a"] == [(1.0, 0.0), (2.0, 0.125), (4.0, 0.5)]
    assert lines(standard)["a"] == [(1.0, 0.0), (2.0, 0.0), (4.0, 0.0)]
    assert [chart.title for chart in latency] == [
        "TTFT against load: interactive",
        "TTLT against load: interactive",
        "TTFT against load: standard",
        "TTLT against load: standard",
    ]
    assert lines(latency[0])["a p99"] == [(1.0, 0.5), (2.0, 2.0), (4.0, 2.0)]
    assert over_loads([measurement(0)], 0.01) == []


def test_a_load_is_sustained_until_the_first_that_is_not() -> None:
    runs = sweep()
    assert (sustained(runs, "a", 0.01), sustained(runs, "a", 0.2)) == (1.0, 2.0)
    assert sustained(runs, "b", 0.01) == 4.0


def test_a_load_is_sustained_by_a_whole_and_valid_run_that_leaves_nothing_behind() -> None:
    """A deadline of minutes hides an overload of minutes; a run that lagged says nothing."""
    light, busy, heavy = (measurement(0, "a", rate) for rate in (1.0, 2.0, 4.0))
    behind = replace(busy, summary=replace(busy.summary, backlog_growth=0.5, backlog_noise=0.1))
    lagged = replace(busy, summary=replace(busy.summary, invalid="it lagged"))
    lost = measurement(0, "a", 2.0, End.TARGET_LOST)
    found = [sustained([light, each, heavy], "a", 0.01) for each in (busy, behind, lagged, lost)]
    assert found == [4.0, 1.0, 4.0, 1.0]


def test_the_errors_of_every_run_are_in_a_table() -> None:
    one, other = measurement(0, "a"), measurement(0, "b")
    failed = replace(other, summary=replace(other.summary, errors=(("full", 1200), ("rare", 1))))
    tables = page(ASKED._replace(mode="compare"), [one, failed]).tables
    assert [table.title for table in tables] == ["Runs", "Errors"]
    assert list(tables[1].rows) == [["full", "b", "1,200"], ["rare", "b", "1"]]
    assert "Errors" not in [table.title for table in page(ASKED, [one]).tables]


def test_the_headline_is_one_sentence() -> None:
    assert headline([measurement(2)], {}, 0.01) == "77.8\xa0% of 9 requests were on time"
    both = [measurement(2, "a"), measurement(0, "b")]
    assert headline(both, {}, 0.01) == "On time: b 100.0\xa0%, a 77.8\xa0%"
    limit = "with at most 1 % late and no growing backlog"
    assert headline(sweep(), {}, 0.01) == f"b serves 4 requests/s {limit}, a 1"
    assert headline(sweep()[:3], {}, 0.01) == f"Serves 1 requests/s {limit}"
    found = {"a": Capacity(12.345, 13.0), "b": Capacity(0.0, 1.0)}
    assert headline(both, found, 0.01) == f"a serves 12.3 requests/s {limit}, b none"
    assert headline(both, {"": Capacity(0.0, 1.0)}, 0.01) == f"No load was served {limit}"


def test_a_ranking_shows_how_far_a_capacity_is_uncertain() -> None:
    chart = ranking(
        {"a": Capacity(3.0, 4.0), "b": Capacity(8.0, math.inf), "c": Capacity(0.0, 1.0)}
    )
    assert isinstance(chart, Ranking)
    assert [(bar.name, bar.value, bar.up_to) for bar in chart.bars] == [
        ("a", 3.0, 4.0),
        ("b", 8.0, None),
    ]
    assert ranking({"": Capacity(0.0, 1.0)}) == Absent(
        "Capacity", "No rate was found that is served."
    )


def test_a_search_shows_only_the_rates_on_both_sides_of_a_capacity() -> None:
    runs = [measurement(0, "", rate) for rate in (8.0, 1.0, 2.0, 4.0, 4.0)]
    assert [view.load for view in views(runs, [Capacity(2.0, 4.0)])] == ["2/s", "4/s"]


def test_a_load_that_one_contender_alone_was_sent_says_whose() -> None:
    runs = [measurement(0, "a", 1.0), measurement(0, "b", 1.0), measurement(0, "b", 2.0)]
    assert [view.load for view in views(runs)] == ["1/s", "2/s b"]


def test_the_load_shown_first_is_the_smallest_that_was_not_served() -> None:
    assert page(ASKED._replace(mode="compare"), sweep()).chosen == "2/s"
    assert page(ASKED._replace(mode="sweep"), sweep()[3:]).chosen == "4/s"


def test_a_load_that_was_tried_several_times_is_served_where_most_runs_served_it() -> None:
    """As the search that tried it had decided."""
    good, bad = measurement(0, "a", 4.0), measurement(8, "a", 4.0)
    low = replace(good, rate=2.0)
    assert sustained([low, good, bad, good], "a", 0.01) == 4.0
    assert sustained([low, good, bad, bad], "a", 0.01) == 2.0
    assert sustained([low, good, bad], "a", 0.01) == 2.0


def test_a_page_made_again_says_what_records_cannot() -> None:
    again = ASKED._replace(seed=None, made_from="run.csv")
    made = page(again, [measurement(0)])
    assert [notice.title for notice in made.notices] == ["Made again from records"]
    assert made.facts["seed"] == "not in the records"
    assert Absent("Chunk size and queue length", "Records do not hold them.") in [
        chart for section in made.sections for chart in section.charts
    ]


def test_a_partial_or_invalid_run_is_told_before_the_figures() -> None:
    lost = measurement(0, end=End.TARGET_LOST)
    invalid = replace(measurement(0, "x"), summary=replace(lost.summary, invalid="it lagged"))
    assert [tuple(each) for each in page(ASKED, [lost]).notices] == [("Partial run", "lost")]
    assert [tuple(each) for each in page(ASKED._replace(mode="compare"), [invalid]).notices] == [
        ("Invalid run x: it says nothing of the server", "it lagged"),
        ("Partial run x", "lost"),
    ]


def test_a_backlog_that_grows_is_told_before_the_figures() -> None:
    """Though nobody is late yet."""
    busy = measurement(0, "b", 2.0)
    behind = replace(busy, summary=replace(busy.summary, backlog_growth=0.5, backlog_noise=0.1))
    made = page(ASKED._replace(mode="sweep"), [measurement(0, "a", 1.0), behind])
    (notice,) = made.notices
    assert notice.title == f"Growing backlog in {behind.name}"
    (table,) = made.tables
    assert [(row[0], row[-1]) for row in table.rows] == [("a", ""), ("b", "behind")]


def test_the_page_tells_broken_promises_where_any_were_made() -> None:
    """Of eight chats and a report all but two chats were on time; all nine were told so."""
    found = measurement(2).records
    for each in found:
        each.promised = True
    kept = Measurement("", summarised(workload(TIERS), INFO, Run(found, 10.0)), found)
    made = page(ASKED, [kept])
    (table,) = (table for table in made.tables if table.title == "Promises")
    names = ["tier", "told on time", "promises broken", "told late", "were late", "late foretold"]
    assert table.header == [*names, "told nothing"]
    assert [row[:3] for row in table.rows] == [
        ["interactive", "8", "25.0\N{NO-BREAK SPACE}%"],
        ["standard", "1", "0.0\N{NO-BREAK SPACE}%"],
        ["all", "9", "22.2\N{NO-BREAK SPACE}%"],
    ]
    assert [tile.what for tile in made.tiles].count("promises broken") == 1
    several = page(ASKED._replace(mode="compare"), [kept, measurement(0, "b")])
    assert [table.title for table in several.tables] == ["Runs", "Promises"]
    silent = page(ASKED, [measurement(0)])
    assert "Promises" not in [table.title for table in silent.tables]
    assert "promises broken" not in [tile.what for tile in silent.tiles]


def test_a_run_to_which_nothing_was_sent_has_a_page() -> None:
    empty = Measurement("", summarised(workload(TIERS), INFO, Run()), [])
    made = page(ASKED, [empty])
    assert made.headline == "Nothing was sent"
    assert made.sections[0].charts == [Absent("On time", "Nothing was sent.")]
    assert made.sections[2].charts[0] == Absent(
        "Arrivals, by what became of them", "Nothing was sent."
    )


def test_the_page_says_who_was_late_and_by_how_much() -> None:
    """A chat that is late has its first token after 2 s, and 1 s was asked for."""
    several = [measurement(2, "fcfs"), measurement(0, "niyama")]
    several[1].records[0].relegated = True
    several[1] = replace(
        several[1], summary=summarised(workload(TIERS), INFO, Run(several[1].records, 10.0))
    )
    fcfs, niyama = page(ASKED, several).answers
    assert fcfs == (
        "Late under fcfs: 2 of 8 interactive (TTFT 2\N{NO-BREAK SPACE}s in the median, target"
        " 1\N{NO-BREAK SPACE}s)."
    )
    assert niyama.startswith("Late under niyama: nobody. 1 relegated: moved behind")
    assert page(ASKED, [measurement(1)]).answers[0].startswith("Late: 1 of 8 interactive (")
    assert not page(ASKED, [measurement(0, rate=1.0), measurement(0, rate=2.0)]).answers
