"""Loads on which a baseline once beat Niyama by more than noise, found by `python -m
loadgen.adversary`, shrunk, understood and mended: it must not again.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from loadgen.adversary.condition import Condition, Part
from loadgen.adversary.search import Search
from loadgen.adversary.trial import Trial, run
from loadgen.adversary.verdict import Measure

# A prompt of 4,000 tokens takes 0.42 s at once, and far longer in chunks for a tenth of the TTFT.
HASTY = Condition(
    "a100-llama3-8b",
    (Part("chat", "0.35s/140ms", 100, "4000/7000", "300"),),
    rps=0.83,
    duration_s=120.0,
    seed=106,
)
# The batch is what is short: large chunks begin many at once, which end at once.
CROWDED = Condition(
    "a100-llama3-8b",
    (Part("free", "none", 100, "300", "200"),),
    rps=32.0,
    duration_s=30.0,
    seed=507,
)
# Outputs go on for long once they are past the guess; p50 and p90 are told.
TAILED = Condition(
    "a100-llama3-8b",
    (
        Part("report1", "14s", 15, "4096/7372", "19/110"),
        Part("report2", "2900s", 31, "4096/7372", "19/110"),
        Part("report3", "3.8s", 8, "4096/7372", "19/110"),
        Part("report4", "9.8s", 46, "4096/7372", "19/110"),
    ),
    rps=1.8,
    duration_s=270.0,
    seed=42,
)
# Long prompts are given up, and hurried streams run beside what is left of the time.
HURRIED = Condition(
    "a100-llama3-8b",
    (
        Part("report1", "130s", 11, "980/2940", "5.9/18"),
        Part("report2", "9s", 26, "120/180", "110/660"),
        Part("report3", "130s", 31, "450/2700", "65/65"),
        Part("chat4", "0.8s/180ms", 32, "1800/10800", "21/21"),
    ),
    rps=5.2,
    duration_s=180.0,
    max_batch_size=64,
    seed=31,
)
# More streams than the pace allows fit into the batch.
MANY = Condition(
    "a100-llama3-8b",
    (Part("chat", "2.8s/58ms", 100, "140/420", "130/200"),),
    rps=34.0,
    duration_s=30.0,
    swing=0.3,
    max_batch_size=512,
    seed=110,
)
# Half of 7.2 s is too little for 600 tokens, and no output of that kind is shorter.
HOPELESS = Condition(
    "a100-llama3-8b",
    (
        Part("report", "7.2s", 50, "600", "600"),
        Part("chat", "2.4s/42ms", 50, "600", "600"),
    ),
    rps=5.6,
    duration_s=90.0,
    max_gap=1.0,
    seed=337,
)

# Streams begin all the time, so that filling a reserve after the first token never ends.
BEGINNING = Condition(
    "a100-llama3-8b",
    (
        Part("chat", "1.3s/44ms", 56, "260", "94"),
        Part("report", "180s", 44, "260", "94"),
    ),
    rps=55.0,
    duration_s=30.0,
    predictor_error=0.02,
    seed=276,
)
# Most prompts take longer than the TTFT, and the others have no time to wait for those.
SHORT = Condition(
    "a100-llama3-8b",
    (Part("chat", "0.53s/28ms", 100, "4000/7000", "30"),),
    rps=2.9,
    duration_s=120.0,
    seed=71,
)

# Of small prompts an iteration of their own is mostly what any iteration costs.
SMALL = Condition(
    "a100-llama3-8b",
    (
        Part("chat1", "3.7s/190ms", 40, "49/147", "46"),
        Part("chat2", "6.7s/140ms", 60, "45", "26/39"),
    ),
    rps=142.0,
    duration_s=30.0,
    swing=0.9,
    seed=380,
)
# In the waves many are given up, whose outputs then fill the batch.
FULL = Condition(
    "a100-llama3-8b",
    (Part("chat", "0.42s/37ms", 100, "720/2160", "120/720"),),
    rps=2.0,
    duration_s=270.0,
    swing=0.9,
    max_batch_size=32,
    seed=485,
)
# Long prompts fill the memory, and prefills the time.
LONG = Condition(
    "roofline:h200:loadgen/adversary/models/qwen2.5-0.5b.json",
    (
        Part("report", "100s", 45, "8192/14745", "60"),
        Part("chat", "1.7s/71ms", 55, "8192/14745", "60"),
    ),
    rps=53.0,
    duration_s=10.0,
    max_gap=2.0,
    cv=2.0,
    kv_tokens=330_000,
    seed=497,
)
# Relegation keeps the queue feasible, and so on the edge of it all the time.
EDGE = Condition(
    "roofline:h200:loadgen/adversary/models/qwen2.5-0.5b.json",
    (
        Part("report", "28s", 17, "2000/12000", "59/59"),
        Part("chat1", "2.4s/24ms", 50, "2600/3900", "30/90"),
        Part("chat2", "1.4s/170ms", 33, "350/2100", "3.7/11"),
    ),
    rps=260.0,
    duration_s=30.0,
    importance="normal:0.5,high:0.5",
    seed=1,
)


@pytest.mark.parametrize("measure", [Measure.LATE, Measure.TTFT_TAIL])
def test_a_ttft_shorter_than_the_prompts_does_not_make_chunks_tiny(measure: Measure) -> None:
    search = Search(lambda trials: [run(trial) for trial in trials], print)
    assert search.confirm(measure, "fairbatching", HASTY) is None


def test_where_the_batch_is_what_is_short_as_much_is_served_as_with_small_chunks() -> None:
    search = Search(lambda trials: [run(trial) for trial in trials], print)
    assert search.confirm(Measure.THROUGHPUT, "fcfs/1024", CROWDED) is None


def test_who_is_past_the_guess_is_not_slowed_down_as_if_it_were_about_to_end() -> None:
    search = Search(lambda trials: [run(trial) for trial in trials], print)
    assert search.confirm(Measure.LATE, "edf/512", TAILED) is None


def test_what_is_given_up_does_not_slow_down_whom_a_rejecting_policy_has_on_time() -> None:
    search = Search(lambda trials: [run(trial) for trial in trials], print)
    assert search.confirm(Measure.LATE, "edf-reject", HURRIED) is None


def test_nobody_is_begun_in_the_hope_for_an_output_shorter_than_its_kind_has() -> None:
    search = Search(lambda trials: [run(trial) for trial in trials], print)
    assert search.confirm(Measure.TTFT_TAIL, "edf-reject", HOPELESS) is None


def test_no_more_streams_begin_than_have_their_pace() -> None:
    """Each that began beyond it made all others late: 59 % of them, where a tenth must wait."""
    assert run(Trial(MANY, "niyama", 111)).late < 0.15


def test_streams_that_begin_all_the_time_shorten_no_iterations() -> None:
    search = Search(lambda trials: [run(trial) for trial in trials], print)
    assert search.confirm(Measure.LATE, "slidingserve", BEGINNING) is None


@pytest.mark.parametrize("max_gap", [math.inf, 1.0])
def test_prompts_that_are_given_up_cost_nobody_else_a_tight_ttft(max_gap: float) -> None:
    search = Search(lambda trials: [run(trial) for trial in trials], print)
    assert search.confirm(Measure.LATE, "edf-reject", replace(SHORT, max_gap=max_gap)) is None


def test_small_prompts_are_not_given_up_as_if_each_had_an_iteration_of_its_own() -> None:
    """That made 32 % late where 7 % are with qoserve."""
    assert run(Trial(SMALL, "niyama", 380)).late < 0.2


def test_what_is_given_up_leaves_places_to_those_that_can_be_on_time() -> None:
    search = Search(lambda trials: [run(trial) for trial in trials], print)
    assert search.confirm(Measure.LATE, "edf-reject", FULL) is None


def test_where_prefills_fill_the_time_a_full_memory_does_not_make_chunks_small() -> None:
    search = Search(lambda trials: [run(trial) for trial in trials], print)
    assert search.confirm(Measure.THROUGHPUT, "edf-dynamic", LONG) is None


def test_the_less_important_are_not_late_for_important_ones_that_have_time() -> None:
    """At the edge of what can be on time a step of importance weighed minutes of deadline: 24 %
    were late, where 3 % are with qoserve, while those of high importance had time.
    """
    figures = run(Trial(EDGE, "niyama", 1))
    assert figures.late < 0.1
    assert figures.late_important < 0.01
