"""Who is ahead of whom over several seeds, and the tables that say so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.deciding.policies import POLICIES
from loadgen.paper.__main__ import main
from loadgen.paper.experiments import NIYAMA
from loadgen.paper.rivals import RIVALS, Standing, is_smaller, markdown, place
from loadgen.paper.serving import Lateness


def lateness(late: float, ttft_s: float = 1.0, tokens_per_s: float = 1000.0) -> Lateness:
    return Lateness(100, late, late, ttft_s, 2.0, 3.0, tokens_per_s)


def standing(**late: Sequence[float]) -> Standing:
    return Standing("a load", {name: [lateness(each) for each in late[name]] for name in late})


def test_everybody_is_compared() -> None:
    assert {rival.policy for rival in RIVALS} == set(POLICIES)
    assert RIVALS[0] == NIYAMA


def test_of_a_difference_counts_what_the_seeds_have_in_common() -> None:
    """Differences of 1, 1 and 4 points: mean 2, standard deviation 1.73, so standard error 1, and
    t 2 is below 2.92. Of 2, 2 and 3: mean 2.33, error 0.33, t 7; though the shares stray by more.
    """
    assert not is_smaller([0.10, 0.20, 0.30], [0.11, 0.21, 0.34])
    assert is_smaller([0.10, 0.20, 0.30], [0.12, 0.22, 0.33])
    assert not is_smaller([0.12, 0.22, 0.33], [0.10, 0.20, 0.30])


@pytest.mark.parametrize("num", [1, 3, 20])
def test_one_request_in_a_thousand_is_no_difference(num: int) -> None:
    assert not is_smaller([0.1] * num, [0.1009] * num)
    assert is_smaller([0.1] * num, [0.1011] * num)


def test_niyama_has_the_place_behind_those_that_are_ahead_by_more_than_noise() -> None:
    won = standing(niyama=[0.1, 0.1], edf=[0.2, 0.2])
    assert place(won) == "1"
    assert place(standing(niyama=[0.1, 0.1], edf=[0.1, 0.1])) == "1"
    noise = standing(niyama=[0.1, 0.1], edf=[0.05, 0.12], fcfs=[0.3, 0.3])
    assert place(noise) == "1, within noise of 1"
    lost = standing(niyama=[0.1, 0.1], edf=[0.05, 0.12], b=[0.03, 0.03], a=[0.02, 0.02])
    assert place(lost) == "3, behind a, b"


def test_the_tables_can_be_pasted() -> None:
    results = {
        "niyama": [lateness(0.005, 1.5, 900.0), lateness(0.007, 2.5, 1100.0)],
        "edf": [lateness(0.5, 1.0), lateness(0.7, 1.0)],
    }
    late, tail, goodput = markdown([Standing("bursts", results)]).split("\n\n")
    assert late.splitlines() == [
        "| late | niyama | its rank of 2 | edf |",
        "|---|---|---|---|",
        "| bursts | **0.60 ±0.14 %** | 1 | 60.0 ±14.1 % |",
    ]
    assert tail.splitlines()[-1] == "| bursts | 2.0 s | **1.0 s** |"
    assert goodput.splitlines()[-1] == "| bursts | **1,000** | **1,000** |"
    one = Standing("bursts", {"niyama": [lateness(0.0)], "edf": [lateness(0.1)]})
    assert "| bursts | **0.0 %** | 1 | 10.0 % |" in markdown([one])


def test_the_command_prints_the_tables_and_refuses_no_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one load, cut to seconds."""
    monkeypatch.setattr(
        "loadgen.paper.__main__.rival_loads", lambda scale: [("a load", scale.load(rate="2"))]
    )
    flags = ["--only", "rivals", "--hours", "0.005", "--seeds", "2", "--processes", "1"]
    assert main([*flags, "--results", str(tmp_path / "paper.json")]) == 0
    printed = capsys.readouterr()
    assert "| a load | **0.0 ±0.0 %** | 1 |" in printed.out
    assert "lateness of niyama, azure-code at 2/s (seed 1)" in printed.err
    with pytest.raises(SystemExit):
        main(["--only", "rivals", "--seeds", "0"])
