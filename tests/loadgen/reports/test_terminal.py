"""What is printed: the tables fit, and no name is taken for markup."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from rich.text import Text

from loadgen.reports.terminal import caveats, print_report, print_runs, runs_table
from loadgen.scoring.modes import Measurement
from loadgen.scoring.score import Promises
from loadgen.scoring.summary import Summary
from loadgen.targets.target import End, Run
from tests.loadgen.examples import CHAT, INFO, REPORT, planned, record, summarised, workload


@pytest.fixture
def summary() -> Summary:
    load = workload((("interactive", 0.5, CHAT), ("standard", 0.5, REPORT)), rate=100.0)
    records = [
        record(planned(n, n / 100, tenant=f"[{n % 2}]"), [n / 100 + 12.345] * 3)
        for n in range(1000)
    ]
    return summarised(load, INFO, Run(records, 10.0, End.TARGET_LOST, "[Errno 5] lost"))


def printed(summary: Summary, width: int) -> str:
    out = io.StringIO()
    print_report(Measurement("", summary, []), Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 118])
def test_the_tables_are_not_cut_off(summary: Summary, width: int) -> None:
    text = printed(summary, width)
    assert "…" not in text
    quantiles = "12.3s/12.3s" if width == 80 else "12.3s/12.3s/12.3s"
    row = next(line.split() for line in text.splitlines() if line.startswith(" interactive"))
    assert row[:5] == ["interactive", "1000", "1000", "0", quantiles]
    assert ("goodput/s" in text) == (width == 118)


def test_it_says_what_on_pace_means_and_what_to_do_about_an_overload(summary: Summary) -> None:
    advice = "more was sent than this target can serve: lower --rps, or try --find-capacity"
    served = replace(summary, backlog_growth=0.2, backlog_noise=0.1)
    behind = replace(summary, backlog_growth=0.21, backlog_noise=0.1)
    assert advice not in printed(served, 118)
    assert advice in printed(behind, 118)
    assert "on pace: on time, and no gap above TBT (`--max-gap 1`" in printed(served, 118)


def test_it_says_how_long_gaps_may_be_where_that_is_known(summary: Summary) -> None:
    first, *others = INFO.tiers
    steady = replace(INFO, tiers=(replace(first, max_gap=1.25), *others))
    told = "may let a gap grow to as many TBTs (max_gap): interactive 1.25"
    assert told in " ".join(printed(replace(summary, target=steady), 118).split())
    assert "max_gap" not in printed(summary, 118)


def test_brackets_are_printed_as_they_are(summary: Summary) -> None:
    text = printed(summary, 118)
    assert "[0]" in text
    assert "PARTIAL [Errno 5] lost" in text


def test_of_several_runs_the_most_frequent_error_of_each_is_told(summary: Summary) -> None:
    summary = replace(summary, backlog_growth=0.0)
    failed = replace(summary, end=End.COMPLETE, errors=(("[Errno 5] full", 7), ("rare", 1)))
    served = replace(summary, end=End.COMPLETE)
    told = caveats([Measurement("10/s", failed, []), Measurement("5/s", served, [])])
    assert [Text.from_markup(line).plain for line in told] == ["7 x 10/s: [Errno 5] full"]


@pytest.fixture
def promised(summary: Summary) -> Summary:
    """Eight told on time, of whom two were late; two told late, of whom one was."""
    told = Promises(kept=6, broken=2, needless=1, foretold=1)
    total = replace(summary.total, promises=told)
    return replace(summary, total=total, by_tier=(replace(total, group="chat"),))


@pytest.mark.parametrize("width", [80, 118])
def test_it_says_which_promises_were_broken(promised: Summary, width: int) -> None:
    text = printed(promised, width)
    rows = [line.split() for line in text.splitlines() if line.startswith((" chat", " all"))]
    figures = ["8", "25.0%", "2", "50.0%", "33.3%", "990"]
    assert rows[-2:] == [["chat", *figures], ["all", *figures]]
    assert "promises broken: told" in text


def test_of_several_runs_each_has_its_promises(summary: Summary, promised: Summary) -> None:
    out = io.StringIO()
    runs = [Measurement("[a]", promised, []), Measurement("b", summary, [])]
    print_runs("rate", runs, 7, Console(file=out, width=80))
    rows = [line.split() for line in out.getvalue().splitlines()]
    assert ["[a]", "8", "25.0%", "2", "50.0%", "33.3%", "990"] in rows
    assert ["b", "0", "-", "0", "-", "-", "1000"] in rows


def test_where_nobody_was_told_anything_there_is_no_table_of_promises(summary: Summary) -> None:
    assert "promises" not in printed(summary, 118)


@pytest.mark.parametrize("width", [80, 118])
def test_the_table_of_several_runs_is_not_cut_off(summary: Summary, width: int) -> None:
    behind = replace(summary, end=End.COMPLETE, backlog_growth=0.21, backlog_noise=0.1)
    out = io.StringIO()
    runs = [Measurement("10/s", summary, []), Measurement("niyama 20/s", behind, [])]
    print_runs("contender", runs, 7, Console(file=out, width=width))
    text = out.getvalue()
    assert "…" not in text
    assert "100.1 requests/s for 0 s, seed 7" in text
    row = next(line.split() for line in text.splitlines() if line.startswith(" niyama"))
    assert row[:2] == ["niyama", "20/s"]
    assert row[-1] == "behind"
    assert ("+21.0%" in row) == (width == 118)
    assert "behind: the backlog grew" in text


def test_a_run_is_a_row_and_a_tier_a_column(summary: Summary) -> None:
    out = io.StringIO()
    table = runs_table("rate", [Measurement("10/s", summary, []), Measurement("[x]", summary, [])])
    Console(file=out, width=118).print(table)
    text = out.getvalue()
    for word in ("10/s", "[x]", "interactive", "standard", "partial"):
        assert word in text
