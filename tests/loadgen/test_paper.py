"""The evaluation of the papers: its arithmetic on numbers worked out by hand, its bookkeeping, and
all of it once at a tiny scale.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import loadgen
from engine.deciding.latency import UNBOUNDED, LatencyProfile, Segment
from loadgen.paper import experiments, load, serving
from loadgen.paper.__main__ import main
from loadgen.paper.ceiling import least_iterations, least_seconds
from loadgen.paper.contender import Contender
from loadgen.paper.experiments import Scale
from loadgen.paper.jobs import Answers, Experiment, Job, fingerprint, run_all
from loadgen.paper.load import Load, compute_bound, pure_seconds
from loadgen.paper.serving import ENVELOPE, largest
from loadgen.scoring.criterion import SIMULATED, Criterion
from loadgen.silos import is_served
from loadgen.targets.simulated import Setup
from loadgen.workload.lengths import FromTrace
from loadgen.workload.plan import PlannedRequest, plan
from tests.loadgen.examples import CHAT, REPORT, planned, record

COSTS = LatencyProfile(
    "round", (Segment(UNBOUNDED, 64.0, 0.25, decode=0.5, decode_context=0.125),), max_chunk=64
)


def test_the_least_time_of_a_request_is_its_share_of_full_chunks_and_its_decodes() -> None:
    """A chunk of 64 takes 64 + 16 s, 1.25 s a token. 8 tokens: 10 s. Two decodes after the first
    token, which read 8 + 1 and 8 + 2 positions: 2 * 0.5 + 19 * 0.125.
    """
    assert pure_seconds(COSTS, 8, 3) == 10.0 + 1.0 + 2.375


def test_the_bound_is_one_over_the_mean_of_that() -> None:
    """10,000 prompt tokens at 1.25 s each, and outputs that cost little beside them."""
    prefill_only = LatencyProfile("prefill", (Segment(UNBOUNDED, 64.0, 0.25),), max_chunk=64)
    sent = Load("10k-prompts", shares=(1.0, 0.0, 0.0))
    assert compute_bound(prefill_only, sent) == pytest.approx(1 / 12_500)


def stream(at: float, output_len: int) -> PlannedRequest:
    """TTFT 1 s and TBT 0.125 s; a prompt of 64 tokens."""
    return planned(at=at, prompt_len=64, output_len=output_len, targets=CHAT)


def test_streams_share_the_iterations_that_their_deadlines_let_them_share() -> None:
    """Tokens of the first are due at 1, 1.125 and 1.25 s, so three iterations run until then. Who
    arrives at 0.5 s with two tokens, due at 1.5 and 1.625, takes part in those; who arrives at
    1.1 s in the last two of them, and wants one more. Who has only to be complete wants none.
    """
    assert least_iterations([stream(0.0, 3)]) == 3
    assert least_iterations([stream(0.0, 3), stream(0.5, 2)]) == 3
    assert least_iterations([stream(0.0, 3), stream(0.5, 2), stream(1.1, 3)]) == 4
    assert least_iterations([planned(output_len=9, targets=REPORT)]) == 0


def test_the_ceiling_counts_the_iterations_that_the_prefills_do_not_need() -> None:
    """Two iterations of 64 s, of which the 64 tokens of the prompt pay one. A chunk of 64 takes
    64 + 16 s; the one decode 0.5 s and 65 positions at 0.125 s.
    """
    assert least_seconds(COSTS, [stream(0.0, 2)]) == 80.0 + 0.5 + 65 * 0.125 + 64.0


def test_no_ceiling_is_worked_out_for_a_profile_for_which_it_would_be_none() -> None:
    (costs,) = COSTS.segments
    for segments in (
        (costs._replace(prefill_pairs=0.5),),
        (costs._replace(up_to=64, base=1.0), costs),
    ):
        with pytest.raises(ValueError, match="may cost less"):
            least_seconds(LatencyProfile("other", segments), [stream(0.0, 2)])


def test_work_is_done_when_its_request_ended_on_time_within_the_run() -> None:
    """A prompt of 64 tokens takes 80 s, the decode of a second token 0.5 s and 65 positions at
    0.125 s. Of the other three one is late, one ends after the run and one never.
    """
    request = stream(0.0, 2)
    ended = [
        record(request, [0.5, 0.6]),
        record(request, [5.0, 5.1]),
        record(replace(request, at=999.5), [1000.2, 1000.3]),
        replace(record(request, [0.5]), ended_at=None),
    ]
    found = serving.share_done(COSTS, ended, 1000.0, SIMULATED)
    assert found == pytest.approx((80.0 + 0.5 + 65 * 0.125) / 1000)


def test_the_ceiling_of_a_load_is_between_what_is_done_and_the_bound() -> None:
    load = Load(hours=0.05, rate="3")
    most = serving.ceiling(load, Contender(), SIMULATED)
    assert 0 < serving.done(load, Contender(), SIMULATED) <= most <= 1.05


@pytest.mark.parametrize("guess", [1, 50, 60, 104])
@pytest.mark.parametrize("found", [0, 1, 49, 50, 51, 88, 105])
def test_the_largest_step_that_serves_is_found_from_any_guess(found: int, guess: int) -> None:
    tried: list[int] = []

    def serves(step: int) -> bool:
        tried.append(step)
        return step <= found

    assert largest(serves, guess, 105) == found
    assert len(tried) == len(set(tried)) <= 12


def test_late_is_by_the_envelope_or_by_the_pace() -> None:
    """Tokens at 0.5, 0.6 and 0.9 s: in time for 1.0, 1.125 and 1.25 s, with a gap above 0.125."""
    uneven = record(planned(targets=CHAT), [0.5, 0.6, 0.9])
    assert not SIMULATED.is_late(uneven)
    assert SIMULATED._replace(pace=True).is_late(uneven)


def test_a_rate_is_served_within_the_misses_allowed_and_with_a_steady_backlog() -> None:
    """Far below what the profile can do, and far above."""
    light, heavy = (list(plan(Load(hours=0.05).workload(rate))) for rate in (1.0, 8.0))
    assert is_served(Contender().setup(), light, ENVELOPE)
    assert not is_served(Contender().setup(), heavy, ENVELOPE), "no request of 600 s is late yet"


def test_where_there_is_no_trace_lengths_are_those_published(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(load, "TRACES", tmp_path)
    load.lengths_of.cache_clear()
    assert not isinstance(load.lengths_of("azure-code"), FromTrace)
    (tmp_path / "azure-2023-code.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,4808,10\n"
    )
    load.lengths_of.cache_clear()
    assert {request.prompt_len for request in plan(Load().workload(0.1))} == {4808}
    load.lengths_of.cache_clear()


def test_silos_are_reduced_by_taking_from_the_largest() -> None:
    assert experiments.reduced([7, 3, 3], 10) == [4, 3, 3]
    assert experiments.reduced([2, 1, 1], 2) == [1, 1, 1], "each keeps one"


def test_only_questions_without_an_answer_are_asked_again(tmp_path: Path) -> None:
    """As after an interruption; and other code asks everything anew."""
    path, said = tmp_path / "answers.json", list[str]()
    job = Job(serving.lateness, Load(hours=0.01, rate="2"), Contender("fcfs"))

    def once() -> Experiment[float]:
        (answer,) = yield [job]
        return float(answer[0])

    (first,) = run_all([once()], Answers(path), 1, said.append)
    (again,) = run_all([once()], Answers(path), 1, said.append)
    assert first == again > 0
    assert len(said) == 1
    assert Answers(path, code="other").by_key == {}


@pytest.mark.parametrize(
    "name", ["engine/deciding/pace.py", "engine/simulator.py", "loadgen/workload/arrivals.py"]
)
def test_answers_depend_on_the_code_that_decides_simulates_and_scores(
    tmp_path: Path, name: str
) -> None:
    root = Path(loadgen.__path__[0]).parent
    for package in ("engine", "loadgen"):
        shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("*.s*"))
    before = fingerprint(tmp_path)
    assert before == fingerprint()
    with (tmp_path / name).open("a") as file:
        file.write("# changed")
    assert fingerprint(tmp_path) != before


def test_an_experiment_may_ask_again_after_an_answer() -> None:
    jobs = [Job(serving.lateness, Load(hours=0.01, rate=rate), Contender("fcfs")) for rate in "12"]

    def twice() -> Experiment[list[Any]]:
        answers: list[Any] = []
        for job in jobs:
            answers += yield [job]
        return answers

    (answers,) = run_all([twice()], Answers(None), 1, lambda line: None)
    assert len(answers) == 2


def test_a_baseline_that_serves_no_rate_with_a_small_chunk_is_tried_with_larger_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where 256 tokens at a time are too slow for the TTFT of the longest prompts."""
    least = {256: 0, 512: 0, 1024: 40, 2048: 30}

    def served(setup: Setup, requests: Sequence[Any], criterion: Criterion) -> bool:
        rate, bound = len(requests) / 360.0, 4.67
        return rate <= bound * least[setup.chunk_size] / 100

    monkeypatch.setattr(serving, "is_served", served)
    first, best = serving.best_chunk(Load(hours=0.1), Contender("edf"), SIMULATED)
    assert (first.rps, best.chunk) == (0.0, 1024)
    assert experiments.against(best, {"edf": first}) == "edf serves none"


def smallest_scale(**rest: Any) -> Scale:
    return Scale(hours=0.02, cluster_hours=0.002, wave_hours=0.02, datasets=("azure-code",), **rest)


def test_every_experiment_comes_to_lines_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """On answers made up: what is asked is what is used, and nothing but numbers is missing."""
    answers = {
        "capacity": [3.0, 0.6, 256],
        "best_chunk": [[2.0, 0.5, 256], [2.5, 0.6, 512]],
        "lateness": [100, 0.5, 0.25, 1.0, 2.0, 3.0, 4000.0],
        "replicas": 5,
        "silo": [[5, 256], [4, 512]],
        "done": 0.8,
        "ceiling": 0.9,
    }
    groups = set()
    for group, experiment in experiments.all_experiments(smallest_scale()):
        groups.add(group)
        asked: Sequence[Job] = next(experiment)
        while True:
            try:
                asked = experiment.send([answers[job.asks.__name__] for job in asked])
            except StopIteration as end:
                lines = end.value
                break
        assert lines
        assert all(line.experiment and line.ours for line in lines)
    assert groups | {"rivals"} == set(experiments.GROUPS)


def test_the_command_prints_the_table_and_keeps_the_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "paper.json"
    flags = ["--quick", "--hours", "0.01", "--only", "wave,mixes", "--results", str(path)]
    assert main([*flags, "--processes", "1"]) == 0
    printed = capsys.readouterr()
    assert "square wave" in printed.out
    assert "mix 70/15/15" in printed.out
    assert "lateness of niyama" in printed.err
    assert path.is_file()


def test_a_group_that_does_not_exist_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "everything"])
    assert "not among cluster" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--hours=nan", "--overload-hours=0", "--processes=0"])
def test_lengths_and_numbers_are_above_0(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([flag])
    assert "above 0" in capsys.readouterr().err


def test_the_number_of_replicas_starts_at_the_bound() -> None:
    """Two a second need one replica, and 12 at least three of 4.6."""
    sent = Load(hours=0.1, rate="2")
    assert serving.replicas(sent, Contender(), SIMULATED) == 1
    assert serving.replicas(replace(sent, rate="12"), Contender(), SIMULATED) >= 3


def test_where_a_prompt_by_itself_takes_too_long_no_number_of_replicas_serves() -> None:
    """7,400 tokens in chunks of 256 take more than 1 s, alone on a replica."""
    sent = Load(hours=0.02, rate="4", ttft_s=1.0)
    assert serving.replicas(sent, Contender("fcfs"), SIMULATED, "interactive") == 0
