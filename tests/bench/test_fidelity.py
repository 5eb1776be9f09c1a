"""What the fidelity benchmark makes of the iterations noted in service, worked out by hand."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest

from engine.deciding.plan import Work
from loadgen.targets.profiles import A100
from loadgen.targets.record import Record
from loadgen.targets.simulated import Setup, SimulatedTarget
from loadgen.targets.target import Progress
from tests.bench._notes import Note, gaps, in_service
from tests.bench.fidelity import Delayed, as_served, on_the_way_s
from tests.loadgen.examples import planned

BETWEEN_S = 0.001


def noted(strays: float, stall_s: float = 0.0) -> list[Note]:
    """Returns notes of iterations that take 5 ms, 0.1 ms per prefill token and 0.5 ms per decode,
    with 1 ms until the next. Every other one takes longer by the share `strays`, every twentieth by
    `stall_s`, and after each tenth the engine rests for a second.
    """
    notes, now = [], 0.0
    for i in range(400):
        work = Work(i % 7, 0, 16 * (i % 5), 0, 0, 0)
        seconds = 5e-3 + 1e-4 * work.num_prefill + 5e-4 * work.num_decodes
        actual_s = (seconds + BETWEEN_S) * (1 + strays * (i % 2)) - BETWEEN_S
        actual_s += stall_s * (i % 20 == 0)
        notes.append(Note(now, seconds, actual_s, actual_s, i % 10 == 0, *work))
        now += actual_s + (1.0 if i % 10 == 9 else BETWEEN_S)
    return notes


def test_a_rest_is_no_part_of_an_iteration() -> None:
    between = list(gaps(noted(0.0)))
    assert len(between) == 400 - 40
    assert between == pytest.approx([BETWEEN_S] * len(between))


def test_the_profile_in_service_goes_from_plan_to_plan() -> None:
    """Work with 5 decodes and 48 prefill tokens: 5 + 4.8 + 2.5 ms, and 1 ms between."""
    profile, error = in_service("served", noted(0.0), max_chunk=64)
    assert (profile.name, profile.max_chunk) == ("served", 64)
    assert profile.seconds(Work(5, 0, 48, 0, 0, 0)) == pytest.approx(13.3e-3, rel=0.01)
    assert error < 0.005


def test_what_is_predicted_adds_up_to_what_was_noted() -> None:
    """One iteration in twenty stalls for 0.1 s: the middle does not see it, the sum does."""
    notes = noted(0.0, stall_s=0.1) + noted(0.0)
    profile, _ = in_service("served", notes, max_chunk=64)
    expected = sum(note.actual_s + BETWEEN_S for note in notes)
    assert sum(profile.seconds(note.work) for note in notes) == pytest.approx(expected)


def test_the_error_is_how_much_iterations_stray() -> None:
    """Half of them as expected, half 10 % longer: in the middle lies 5 %, each is 5 % off."""
    _, error = in_service("served", noted(0.1), max_chunk=64)
    assert error == pytest.approx(1.4826 * 0.05 / 1.05, rel=0.25)


def test_the_setup_of_the_simulation_takes_both() -> None:
    alone = Setup(A100, policy="edf", drain_s=60.0)
    served = as_served(alone, noted(0.1))
    assert served.predictor_error > 0.03
    assert served.profile.latency.max_chunk == A100.latency.max_chunk
    assert replace(served, profile=A100, predictor_error=0.0) == alone


def test_time_on_the_way_is_the_median_over_the_first_tokens_that_both_sides_timed() -> None:
    """Due at 1 s: 20, 30 and 90 ms longer at the client; one without a token, one not timed."""
    records = [
        Record(planned(at=1.0), 1.0, token_at=array("d", [1.2 + extra]), server_ttft_s=0.2)
        for extra in (0.09, 0.02, 0.03)
    ]
    records.append(Record(planned(at=1.0), 1.0))
    records.append(Record(planned(at=1.0), 1.0, token_at=array("d", [9.0])))
    assert on_the_way_s(records) == pytest.approx(0.03)


def test_what_lies_outside_the_engine_delays_every_token() -> None:
    def ignore(progress: Progress) -> None: ...

    target = SimulatedTarget(Setup(A100))
    (alone,) = target.run([planned(output_len=3)], ignore).records
    (delayed,) = Delayed(target, 0.5).run([planned(output_len=3)], ignore).records
    assert list(delayed.token_at) == [at + 0.5 for at in alone.token_at]
    assert delayed.ended_at == (alone.ended_at or 0.0) + 0.5
