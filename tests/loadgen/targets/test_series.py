"""What a simulated target says of itself over time. An iteration takes 1/2 s, and 1/4 s for each
prefill token: prompts of 8, one chunk each, take 2.5 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from engine.deciding.latency import UNBOUNDED, LatencyProfile, Segment
from loadgen.targets.profiles import Profile
from loadgen.targets.series import MOST_STEPS
from loadgen.targets.simulated import Setup, SimulatedTarget
from loadgen.targets.target import Series
from tests.loadgen.examples import planned

COSTS = LatencyProfile("quarters", (Segment(UNBOUNDED, 0.5, prefill=0.25, decode=0.125),))
PROFILE = Profile("quarters", COSTS, kv_tokens=1 << 14, context_len=512)
SETUP = Setup(PROFILE, policy="fcfs", chunk_size=8, keeps_series=True)


def series_of(arrivals: Sequence[float], prompt_len: int = 8) -> Series:
    requests = [
        planned(n, at, prompt_len=prompt_len, output_len=1) for n, at in enumerate(arrivals)
    ]
    series = SimulatedTarget(SETUP).run(requests, lambda progress: None).series
    assert series is not None
    return series


def filled(values: Sequence[float]) -> dict[int, float]:
    return {index: value for index, value in enumerate(values) if value}


def test_a_step_holds_the_chunks_and_the_queue_of_its_iterations() -> None:
    """Of three at once, one prefills and the others wait; then one; then nobody. Chunks begin at
    1, 3.5 and 6 s.
    """
    series = series_of([1.0, 1.0, 1.0])
    assert series.step_s == 0.1
    assert filled(series.chunk_len) == {10: 8.0, 35: 8.0, 60: 8.0}
    waiting = filled(series.num_waiting)
    assert list(waiting) == [10, 35, 60]
    assert waiting[10] - waiting[35] == waiting[35] - waiting[60] == 1.0


def test_the_last_chunk_of_a_prompt_is_what_is_left() -> None:
    assert filled(series_of([0.0], prompt_len=20).chunk_len) == {0: 8.0, 25: 8.0, 50: 4.0}


def test_a_long_run_has_longer_steps_and_the_same_means() -> None:
    """Up to 400 s in 512 steps: 0.8 s each. Chunks of 8 and 4 that fell into steps of their own
    are one step of 6.
    """
    series = series_of([0.0, 400.0], prompt_len=20)
    assert series.step_s == 0.8
    assert len(series.chunk_len) <= MOST_STEPS
    assert filled(series.chunk_len) == {0: 8.0, 3: 8.0, 6: 4.0, 500: 8.0, 503: 8.0, 506: 4.0}
    far = series_of([0.0, 3000.0], prompt_len=20)
    assert far.step_s == 6.4
    assert far.chunk_len[0] == 20 / 3


def test_a_series_is_kept_only_where_it_is_asked_for() -> None:
    target = SimulatedTarget(replace(SETUP, keeps_series=False))
    assert target.run([planned()], lambda progress: None).series is None
