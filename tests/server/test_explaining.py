"""What became of a request is told across a restart, from the decision log, by the same rules."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from engine.deciding.request import Request, Sampling
from engine.deciding.timeline import Timeline
from engine.linking.errors import EngineLost, Unanswered
from engine.messages import Failure
from niyama.client import Client, NotFound
from niyama.client.__main__ import main
from niyama.client.values import Explanation
from server.admission.quota import Caller
from server.errors import CallError
from server.explaining import MOST_SEARCHES, Stories
from tests.server.conftest import within
from tests.server_process import ServerProcess

TOKEN = "a-word-that-nobody-guesses"
CONFIG = """
[tiers.chat]
ttft_s = 1e-6
tbt_s = 0.5
[tenants.acme]
"""


def test_a_server_that_was_killed_explains_what_came_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the operator's token any id, by a tenant its own; several completions, and JSON."""
    log, config, token = (tmp_path / name for name in ("log.jsonl", "config.toml", "token"))
    config.write_text(CONFIG)
    token.write_text(TOKEN)
    token.chmod(0o600)
    flags = ("--decision-log", str(log), "--config", str(config), "--admin-token-file", str(token))
    asked = [("acme", "late"), ("", "several/0"), ("", "several/1")]

    def stories(address: str) -> list[Explanation]:
        with Client(address, token=TOKEN) as operator:
            return [operator.explain(name, tenant) for tenant, name in asked]

    with ServerProcess(tmp_path / "one", *flags, module="tests.null_server") as server:
        server.wait_ready()
        with Client(server.address, tenant="acme") as acme:
            acme.complete([7], max_tokens=2, tier="chat", request_id="late")
        with Client(server.address) as nameless:
            nameless.complete([7], max_tokens=2, n=2, request_id="several")
        before = stories(server.address)
        server.child.kill()
        server.wait_exit()
    with ServerProcess(tmp_path / "two", *flags, module="tests.null_server") as server:
        server.wait_ready()
        after = stories(server.address)
        assert not any(story.from_decision_log for story in before)
        assert [replace(story, from_decision_log=True) for story in before] == after
        late = after[0]
        assert (late.result, late.tenant) == ("late", "acme")
        assert late.needed[0].startswith("A TTFT of ")
        assert late.budget is not None
        with Client(server.address, tenant="acme") as acme:
            assert acme.explain("late").summary == late.summary
            with pytest.raises(NotFound, match="of tenant 'acme'"):
                acme.explain("several")
        with (
            Client(server.address, token=TOKEN) as operator,
            pytest.raises(NotFound, match="of any tenant"),
        ):
            operator.explain("never")
        common = ("--server", server.address, "--token-file", str(token))
        assert main([*common, "explain", "several", "--json"]) == 0
        told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [each["request_id"] for each in told] == ["several/0", "several/1"]
        assert all(each["from_decision_log"] for each in told)
        assert main([*common, "explain", "late"]) == 0
        shown = capsys.readouterr().out
        assert "late of tenant acme: TTFT 0.0 ms" in shown
        assert "\n- A TTFT of " in shown


# By a log and an engine that says what it is told to say


class Answers:
    """An engine that has always the same answer, and counts how often it is asked."""

    def __init__(self, answer: Timeline | Exception) -> None:
        self._answer = answer

    async def ask(self, question: object) -> Timeline:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


UNKNOWN = Unanswered("nothing", Failure.NOT_FOUND)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    for tenant in ("", "a"):
        asked = {"tier": "", "importance": "low", "prompt_tokens": 3, "max_tokens": 2, "share": ""}
        line = {"kind": "arrived", "request_id": "old", "tenant": tenant, "at": 1.0, "unix_s": 1.0}
        with path.open("a") as file:
            file.write(json.dumps({**line, **asked, "detail": ""}) + "\n")
    return path


async def test_the_log_is_asked_where_the_engine_does_not_know_or_is_not_there(log: Path) -> None:
    for failure in (UNKNOWN, EngineLost("it is starting")):
        told = await within(Stories(Answers(failure).ask, log).tell("old", "a"))
        assert told.from_decision_log
        assert (told.request_id, told.tenant) == ("old", "a")
        assert "its end is not in the decision log" in told.summary
        with pytest.raises(CallError) as caught:
            await within(Stories(Answers(failure).ask, None).tell("old", "a"))
        with pytest.raises(CallError) as again:
            await within(Stories(Answers(failure).ask, log).tell("new", "a"))
        assert caught.value.code is again.value.code
    known = Timeline(Request("old", [1], Sampling(), 0.0))
    assert not (await within(Stories(Answers(known).ask, log).tell("old", ""))).from_decision_log
    with pytest.raises(CallError, match="2 tenants have a request_id 'old'"):
        await within(Stories(Answers(UNKNOWN).ask, log).tell("old", None))


async def test_who_asks_for_unknown_ids_leaves_room_for_others(log: Path) -> None:
    stories = Stories(Answers(UNKNOWN).ask, log)
    flood = Caller("", "flood")
    asked = [stories.tell(f"x{i}", "flood", flood, False) for i in range(2 * MOST_SEARCHES)]
    searching = asyncio.gather(*asked, stories.tell("old", "a"), return_exceptions=True)
    *ends, told = await within(searching)
    assert not isinstance(told, BaseException)
    assert told.from_decision_log
    codes = [end.code.name for end in ends if isinstance(end, CallError)]
    assert codes.count("NOT_FOUND") == MOST_SEARCHES // 2
    assert codes.count("RESOURCE_EXHAUSTED") == 2 * MOST_SEARCHES - MOST_SEARCHES // 2


async def test_a_disk_that_hangs_holds_one_thread(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waited has left long since: the next search begins when this one has ended."""
    hangs, begun = threading.Event(), asyncio.Queue[str]()
    loop = asyncio.get_running_loop()

    def find(path: Path, name: str, tenant: str | None) -> Timeline:
        loop.call_soon_threadsafe(begun.put_nowait, name)
        hangs.wait()
        raise LookupError

    monkeypatch.setattr("engine.past.find", find)
    monkeypatch.setattr("server.explaining.RESTS", 0)
    stories = Stories(Answers(UNKNOWN).ask, log)
    try:
        first = asyncio.create_task(stories.tell("first", "a"))
        assert await within(begun.get()) == "first"
        first.cancel()
        await within(asyncio.wait([first]))
        second = asyncio.create_task(stories.tell("second", "a"))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(begun.get(), timeout=0.05)
    finally:
        hangs.set()
    assert await within(begun.get()) == "second"
    with pytest.raises(CallError):
        await within(second)
