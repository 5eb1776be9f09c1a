"""The applications whose needs are inferred: what they send, and how they are scored."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from engine.tiers_file import parse
from loadgen.inferring import live
from loadgen.inferring.__main__ import main
from loadgen.inferring.applications import APPLICATIONS, TIERS, Call, Caller, Comes, tiers_toml
from loadgen.inferring.score import Score, confusion, is_on_time, is_worse, score
from loadgen.inferring.simulated import server_tiers

OWN = {each.name: each for each in APPLICATIONS}


def call(name: str, at: list[float], ended_at: float, is_complete: bool = True) -> Call:
    """One that was sent at instant 100."""
    made = Call(OWN[name], 0, 100.0, 10)
    made.token_at = [100 + each for each in at]
    made.ended_at, made.is_complete = 100 + ended_at, is_complete
    return made


def test_the_server_and_the_simulation_have_the_same_tiers() -> None:
    assert parse(tiers_toml(), Path("f.toml")) == server_tiers()
    assert {each.meant for each in APPLICATIONS} == TIERS.keys()


@pytest.mark.parametrize("application", APPLICATIONS, ids=lambda each: each.name)
def test_an_application_sends_the_same_calls_to_the_same_answers(application: object) -> None:
    def sent() -> list[tuple[float, int, float]]:
        caller = Caller(application, 30.0, 1.0, seed=3)  # type: ignore[arg-type]
        todo = sorted(caller.first(), key=lambda each: each.at)
        for each in todo:
            each.ended_at = each.at + 1.0
            todo += caller.answered(each)
        assert all(each.at < 30.0 for each in caller.calls)
        return [(each.at, each.prompt_len, each.gives_up_s) for each in caller.calls]

    assert sent() == sent()
    assert len(sent()) > 3


def test_calls_that_are_sent_together_wait_for_all_answers() -> None:
    caller = Caller(OWN["nightly"], 100.0, 1.0, seed=0)
    first = list(caller.first())
    assert OWN["nightly"].comes is Comes.TOGETHER
    for i, each in enumerate(first):
        each.ended_at = 10.0 + i
        after = list(caller.answered(each))
        assert len(after) == (len(first) if i == len(first) - 1 else 0)
    assert {each.at for each in after} == {10.0 + len(first) - 1 + OWN["nightly"].pause_s}


def test_a_call_is_judged_by_what_its_application_means() -> None:
    """Interactive: 1 s, then 0.1 s a token. Completion: 1 s. Standard: 10 s."""
    assert is_on_time(call("desk", [0.9, 1.05], 1.05))
    assert is_on_time(call("desk", [0.9, 1.2], 1.2)) is False
    assert is_on_time(call("desk", [0.9], 1.0, is_complete=False))  # left with what it had
    assert is_on_time(call("desk", [0.9], 1.2, is_complete=False)) is False
    assert is_on_time(call("desk", [], 0.5, is_complete=False)) is None
    assert is_on_time(call("desk", [], 1.5, is_complete=False)) is False
    assert is_on_time(call("kiosk, unnamed", [], 1 + 23 * 0.1))
    assert is_on_time(call("kiosk, unnamed", [], 3.4)) is False
    assert is_on_time(call("editor, unnamed", [0.1], 1.0))
    assert is_on_time(call("editor, unnamed", [0.1], 0.3, is_complete=False)) is None
    assert is_on_time(call("forms", [], 10.1)) is False


def scored(num: int, on_time: int, named: list[str]) -> Score:
    return Score(OWN["forms"], num, on_time, Counter(named), None, "")


def test_worse_is_what_chance_does_not_explain() -> None:
    assert is_worse(scored(1000, 900, []), scored(1000, 990, []))
    assert not is_worse(scored(1000, 985, []), scored(1000, 990, []))
    assert not is_worse(scored(10, 8, []), scored(10, 10, []))
    assert not is_worse(scored(0, 0, []), scored(10, 10, []))
    unlike = [scored(500, each, []) for each in (500, 300)]  # a machine that is now and then slow
    assert not is_worse(Score.sum(unlike), scored(1000, 990, []))


def test_naming_is_counted_from_when_it_stays_right() -> None:
    caller = Caller(OWN["forms"], 0.0, 1.0, seed=0)
    for name in ["", "", "standard", "batch", *["standard"] * 20]:
        made = call("forms", [], 1.0)
        made.inferred = name
        caller.calls.append(made)
    found = score(caller)
    assert (found.right_from, found.last, found.num) == (3, "standard", 24)
    assert confusion([found, found])["standard"]["batch"] == 2
    assert not math.isnan(found.attainment)


def test_the_command_scores_in_virtual_time(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--simulate", "a100-llama3-8b", "--duration", "20", "--load", "1"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == (1 if told["worse"] else 0)
    assert told["applications"].keys() == OWN.keys()
    assert 0 < told["named_of_calls"] < 1
    assert told["too_loose"] == []


def test_calls_are_sent_live_as_they_are_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """To a real server, before an engine that costs nothing."""
    callers = [Caller(each, 2.0, 1.0, seed=1) for each in APPLICATIONS]
    live.run(callers, True, "tests.null_server")
    calls = [each for caller in callers for each in caller.calls]
    assert all(each.ended_at < math.inf for each in calls)
    complete = [each for each in calls if each.is_complete]
    assert len(complete) > len(calls) / 2
    assert {each.tier for each in complete} <= TIERS.keys()
