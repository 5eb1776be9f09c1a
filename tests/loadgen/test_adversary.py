"""The search for losses: the same from the same seed, finds that are real and as simple as they can
be, and nothing where there is nothing.
"""

from __future__ import annotations

import json
import math
import random
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen import cli
from loadgen.adversary.__main__ import EXIT_FOUND, main
from loadgen.adversary.condition import Condition, Part, draw, percents, profile_of
from loadgen.adversary.search import Search, command, drawn
from loadgen.adversary.shrink import shrink, simpler
from loadgen.adversary.trial import Figures, Trial, figures, run
from loadgen.adversary.verdict import Measure, better, excuses, is_perfect
from loadgen.targets.record import Outcome
from niyama.client.values import Importance, Targets
from tests.loadgen.examples import CHAT, REPORT, planned, record

GOOD = Figures(0.0, 0.0, 1.0, 1.0, 0.0, 0.0)
CHATS = Part("chat", "6s/50ms", 50, "1930/6251", "8/43")
REPORTS = Part("report", "600s", 50, "400/400", "20/90")
LOAD = Condition("a100-llama3-8b", (CHATS, REPORTS), rps=4.0, duration_s=120.0)


def here(trials: Sequence[Trial]) -> list[Figures]:
    return [run(trial) for trial in trials]


def silent(text: str) -> None:
    """Says nothing."""


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_what_is_drawn_is_a_load_that_the_command_line_knows(seed: int) -> None:
    """Every shape of condition: its flags are read, and its tiers are all that is sent."""
    condition = draw(random.Random(seed))
    assert condition == draw(random.Random(seed))
    assert sum(part.percent for part in condition.parts) == 100
    assert profile_of(condition).kv_tokens > 1000
    assert 30 <= condition.duration_s <= 600
    assert 0.4 < condition.load < 2.2


def test_conditions_differ_and_depend_on_the_seed_alone() -> None:
    first, again, other = (list(islice(drawn(seed), 5)) for seed in (1, 1, 2))
    assert first == again
    assert len({*first, *other}) == 10


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_percents_add_up_to_a_hundred(parts: list[int]) -> None:
    found = percents(parts)
    assert sum(found) == 100
    assert all(abs(n - 100 * p / sum(parts)) <= 1 for n, p in zip(found, parts, strict=True))


def test_a_tail_counts_who_never_got_a_token_as_waiting_for_ever() -> None:
    """Targets of 1 and 10 s; the important one is late."""
    chat = planned(targets=CHAT)
    ended = [
        record(replace(chat, importance=Importance.HIGH), [2.0, 2.1]),
        record(chat, [0.5, 0.6]),
        record(planned(targets=REPORT), [15.0, 15.0]),
        record(planned(targets=Targets()), [70.0, 90.0]),
    ]
    found = figures(ended)
    assert found[:5] == (0.5, 1.0, 2.0, 1.5, 90.0)
    rejected = replace(ended[1], token_at=type(ended[1].token_at)("d"), outcome=Outcome.REJECTED)
    assert figures([*ended, rejected]).ttft_tail == math.inf


def test_gaps_count_where_the_load_rules_them_out() -> None:
    """A TBT of 125 ms: gaps of 150, of 250, and of 130 ms, which is as good as 125."""
    ended = [record(planned(targets=CHAT), [0.5, 0.5 + gap]) for gap in (0.15, 0.25, 0.13)]
    assert figures(ended).gaps == 0.0, "nothing is ruled out"
    assert figures(ended, 1.25).gaps == pytest.approx(1 / 3)
    assert figures(ended, 1.0).gaps == pytest.approx(2 / 3)
    kept, broken = GOOD._replace(late=0.3), GOOD._replace(gaps=0.3)
    assert not is_perfect(broken)
    assert excuses(Measure.LATE, better([kept], [broken])) == {Measure.GAPS}
    assert excuses(Measure.GAPS, better([broken], [kept])) == {Measure.LATE}


def test_better_is_by_more_than_noise_and_at_every_seed() -> None:
    def late(*shares: float) -> list[Figures]:
        return [GOOD._replace(late=share) for share in shares]

    assert Measure.LATE in better(late(0.01, 0.02, 0.01), late(0.05, 0.06, 0.05))
    for theirs, why in (
        ((0.045, 0.055, 0.045), "half a percent"),
        ((0.06, 0.0, 0.0), "not at every seed"),
        ((0.049, 0.02, 0.049), "one seed alone"),
    ):
        assert not better(late(*theirs), late(0.05, 0.06, 0.05)), why
    assert not better(late(0.59), late(0.61)), "5 % of what we have late"


def test_a_tail_within_its_target_is_no_loss() -> None:
    tails = [GOOD._replace(ttft_tail=tail) for tail in (1.0, 1.4, 1.6, math.inf)]
    assert not better([GOOD], tails[:1])
    assert not better([GOOD], tails[1:2])
    assert better([GOOD], tails[2:3]) == {Measure.TTFT_TAIL}
    assert better([tails[2]], tails[3:]) == {Measure.TTFT_TAIL}
    assert not better(tails[3:], tails[3:]), "neither has an end"


def test_throughput_counts_where_both_had_work_left() -> None:
    busy, busier = (GOOD._replace(tokens_per_s=rate) for rate in (1000.0, 1040.0))
    assert better([busier], [busy]) == {Measure.THROUGHPUT}
    assert not better([busier], [GOOD])
    assert is_perfect(GOOD)
    assert not is_perfect(busy)


def test_only_what_a_find_needs_is_left_of_it() -> None:
    """Needed are bursts and the tier of reports; all else goes, and the numbers become round."""
    start = replace(
        LOAD,
        parts=(CHATS, REPORTS._replace(output="23/91"), CHATS._replace(name="other")),
        cv=4.0,
        swing=0.5,
        kv_tokens=50_000,
        predictor_error=0.1,
        tenants="a:0.5,b:0.5",
        duration_s=480.0,
    )
    start = replace(
        start,
        parts=tuple(p._replace(percent=s) for p, s in zip(start.parts, (40, 30, 30), strict=True)),
    )

    def still(condition: Condition) -> Condition | None:
        needed = condition.cv > 1 and any(part.name == "report" for part in condition.parts)
        return condition if needed else None

    found = shrink(start, start, still, 100)
    (part,) = found.parts
    assert (part.targets, part.percent, part.prompt, part.output) == ("600s", 100, "400", "60")
    assert found == replace(LOAD, parts=(part,), cv=4.0, rps=found.rps, duration_s=60.0)
    assert found.load == pytest.approx(start.load, rel=0.05), "as loaded as before"


def test_shrinking_ends_after_the_steps_that_it_is_given() -> None:
    tried: list[Condition] = []

    def still(condition: Condition) -> Condition:
        tried.append(condition)
        return condition

    start = replace(LOAD, cv=4.0, tenants="a:1", kv_tokens=50_000)
    assert shrink(start, start, still, 2) == tried[-1]
    assert len(tried) == 2


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_no_step_makes_a_condition_what_it_was(seed: int) -> None:
    condition = draw(random.Random(seed))
    steps = list(simpler(condition))
    assert condition not in steps
    assert len(steps) == len(set(steps))


def test_a_policy_that_is_weak_is_found_out_and_the_command_shows_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In order of arrival with a chunk of 256 an overload makes everybody late."""
    search = Search(here, silent, "fcfs", rivals=("niyama",), orders=("edf",), most_steps=0)
    search.try_one(replace(LOAD, rps=6.5, duration_s=60.0))
    assert search.finds
    find = search.finds[0]
    assert Measure.LATE in find.gains
    _, _, _, *argv = shlex.split(command(find, "fcfs"))
    assert cli.main(argv) == 0
    printed = capsys.readouterr().out
    shares = [f"{1 - by_seed[0].late:.1%}" for by_seed in (find.ours, find.theirs)]
    assert all(share.removesuffix("%") in printed for share in shares), printed


def test_nothing_is_found_where_everybody_is_the_same() -> None:
    search = Search(here, silent, "edf", rivals=("edf/256",), orders=("edf",))
    overload = replace(LOAD, rps=6.5, duration_s=60.0)
    assert search.confirm(Measure.LATE, "edf/256", overload) is None
    assert search.finds == []


def made_up(weak: str, trials: Sequence[Trial]) -> list[Figures]:
    """Answers without a simulation: one is late under bursts, everybody else never."""
    return [
        GOOD._replace(late=0.2) if t.contender == weak and t.condition.cv > 1 else GOOD
        for t in trials
    ]


def test_a_search_is_bounded_and_comes_to_the_same_from_the_same_seed() -> None:
    def searched() -> Search:
        search = Search(partial(made_up, "niyama"), silent)
        search.search(3, 3600.0)
        return search

    first, again = searched(), searched()
    assert first.finds == again.finds
    assert 3600 <= first.virtual_s < 3600 + 600
    assert len(first.finds) == len(set(first.finds)) >= 1
    assert all(f.condition.cv > 1 and len(f.condition.parts) == 1 for f in first.finds)


def test_finds_that_cost_the_rival_are_told_with_their_price_and_not_shrunk() -> None:
    """Better in the tail of TTFT by more late ones."""

    def run_all(trials: Sequence[Trial]) -> list[Figures]:
        ours, theirs = GOOD._replace(ttft_tail=20.0), GOOD._replace(late=0.3, late_important=0.3)
        return [ours if trial.contender == "niyama" else theirs for trial in trials]

    search = Search(run_all, silent)
    search.try_one(LOAD)
    (find,) = search.finds
    assert find.condition == LOAD
    assert find.price == {Measure.LATE, Measure.LATE_IMPORTANT}
    outright = Search(run_all, silent, is_outright=True)
    outright.try_one(LOAD)
    assert outright.finds == []


def test_the_command_ends_in_time_with_a_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--seed", "5", "--virtual-hours", "0.001", "--steps", "0", "--processes", "1"]
    status = main(flags)
    printed = capsys.readouterr()
    document = json.loads(printed.out.splitlines()[-1])
    assert (document["seed"], document["conditions"], document["end"]) == (5, 1, "complete")
    assert status in (0, EXIT_FOUND)
    assert "1: niyama" in printed.err
    assert main([*flags, "--minutes", "0"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["end"] == "out of time"


@pytest.mark.parametrize(
    "flag",
    [
        "--processes=0",
        "--virtual-hours=nan",
        "--virtual-hours=0",
        "--minutes=nan",
        "--minutes=-1",
        "--steps=-1",
        "--steps=x",
        "--policy=nobody",
        "--seed=x",
    ],
)
def test_what_makes_no_sense_is_a_usage_error(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([flag])
    assert end.value.code == 2
    assert f"argument {flag.partition('=')[0]}: " in capsys.readouterr().err
