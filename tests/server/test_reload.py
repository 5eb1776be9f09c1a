"""SIGHUP: the configuration file is read again, and nobody dies of it, whatever it says."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.tiers import BUILT_IN, Tiers
from engine.tiers_file import changes, load
from niyama.client import AccessDenied, Client, InvalidRequest, NotFound
from server.app import follow
from server.config import ServerConfig
from server.configuration import Configuration
from server.identity import watching
from tests.server_process import ServerProcess

WAIT_S = 60.0
STREAMS, TOKENS = 6, 50
MOST = 12  # requests: more than streams, of which one may be over and not have left yet
Start = Callable[..., ServerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[ServerProcess] = []

    def start(*flags: str) -> ServerProcess:
        log = tmp_path / f"log{len(started)}"
        started.append(ServerProcess(log, *flags, module="tests.null_server"))
        started[-1].wait_ready()
        return started[-1]

    yield start
    for process in started:
        process.__exit__()


def wait_line(process: ServerProcess, event: str, number: int = 1) -> dict[str, Any]:
    """The log's so many'th line of that event."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        lines = [json.loads(line) for line in process.log.splitlines() if line.endswith("}")]
        found = [line for line in lines if line["event"] == event]
        if len(found) >= number:
            return found[number - 1]
        assert process.child.poll() is None, process.log
        time.sleep(0.01)
    raise AssertionError(f"no such line: {process.log}")


def tiers_of(process: ServerProcess) -> list[str]:
    with Client(process.address) as client:
        return [tier.name for tier in client.server_info().tiers]


def test_a_file_that_is_read_again_is_for_the_calls_that_come(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "tiers.toml"
    path.write_text("[tiers.chat]\nttlt_s = 3\n[tiers.old]\nttlt_s = 9\n")
    process = start("--config", str(path))
    path.write_text("[tiers.chat]\nttlt_s = 4\n[tiers.new]\nttlt_s = 9\n")
    assert tiers_of(process) == ["chat", "old"]

    process.signal(signal.SIGHUP)
    told = wait_line(process, "configuration read")
    assert told["changes"] == ["tiers.chat", "tiers.new", "tiers.old"]
    with Client(process.address) as client:
        assert client.generate("Once", tier="new", max_tokens=2).read()
        with pytest.raises(InvalidRequest, match="unknown tier 'old'"):
            client.generate("Once", tier="old").read()

    huge = b"[tiers.chat]\nttlt_s = 1" + b"0" * 400  # no float holds it: it ended all reading
    bads = (b"[tiers.chat", b"\xff", b"x = " + b"[" * 100_000, huge)
    for number, bad in enumerate(bads, start=1):
        path.write_bytes(bad)
        process.signal(signal.SIGHUP)
        assert str(path) in wait_line(process, "configuration not read", number)["reason"]
        assert tiers_of(process) == ["chat", "new"]
    path.unlink()
    process.signal(signal.SIGHUP)
    assert "No such file" in wait_line(process, "configuration not read", 5)["reason"]
    assert tiers_of(process) == ["chat", "new"]


async def test_a_file_that_is_followed_is_read_again_once_it_has_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another file in its place counts, too: that is how Kubernetes renews one."""
    monkeypatch.setattr(watching, "LOOK_S", 0.02)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "niyama.toml").write_text(f"[tiers.{name}]\nttlt_s = 3\n")
    data, asked = tmp_path / "data", asyncio.Event()
    data.symlink_to("old")
    config = ServerConfig(config=data / "niyama.toml", follow_config=True)
    following = asyncio.create_task(follow(config, asked))
    async with asyncio.timeout(WAIT_S):
        while not asked.is_set():  # it may not have looked yet before the first exchange
            for name in ("new", "old"):
                (tmp_path / "next").symlink_to(name)
                (tmp_path / "next").replace(data)
                await asyncio.sleep(0.1)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    await follow(ServerConfig(config=data / "niyama.toml"), asked)  # nobody has asked for it
    with pytest.raises(ValueError, match=r"^follow_config wants a file"):
        ServerConfig(follow_config=True)


def test_every_front_end_takes_it_and_those_that_are_started_again(
    start: Start, tmp_path: Path
) -> None:
    """Though the file is broken by then. Signals are the supervisor's: the others ignore them."""
    path = tmp_path / "tiers.toml"
    path.write_text("[tiers.old]\nttlt_s = 3\n")
    process = start("--config", str(path), "--frontends", "2")
    path.write_text("[tiers.new]\nttlt_s = 3\n")
    for child in psutil.Process(process.child.pid).children():
        child.send_signal(signal.SIGHUP)
    process.signal(signal.SIGHUP)
    wait_line(process, "configuration read")
    until = time.monotonic() + WAIT_S
    while any(tiers_of(process) != ["new"] for _ in range(8)):  # connections are dealt out
        assert time.monotonic() < until
    assert "lost" not in process.log

    path.write_text("[tiers")
    children = psutil.Process(process.child.pid).children()
    (engine,) = [child for child in children if "engine.driving" in child.cmdline()]
    next(child for child in children if "server.frontends.worker" in child.cmdline()).kill()
    wait_line(process, "front end started again")
    engine.kill()
    wait_line(process, "engine recovered")
    process.signal(signal.SIGHUP)
    wait_line(process, "configuration not read")
    assert process.child.poll() is None


def test_without_a_file_it_is_ignored(start: Start) -> None:
    """A terminal that closes sends it, and ends no server."""
    process = start()
    for child in psutil.Process(process.child.pid).children():
        child.send_signal(signal.SIGHUP)
    process.signal(signal.SIGHUP)
    wait_line(process, "SIGHUP ignored")
    assert tiers_of(process) == [tier.name for tier in BUILT_IN]
    assert "lost" not in process.log
    process.signal(signal.SIGTERM)
    assert process.wait_exit() == 0


class Load:
    """Streams, one after another in each of some threads, until it is stopped."""

    def __init__(self, address: str) -> None:
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(STREAMS)
        self._running = [self._pool.submit(self._stream, address) for _ in range(STREAMS)]
        self.num_ended = 0  # by itself, with all of its tokens

    def _stream(self, address: str) -> int:
        ended = 0
        with Client(address) as client:
            while not self._stopping.is_set():
                tokens = list(client.generate("Once", ttlt=60, max_tokens=TOKENS, ignore_eos=True))
                assert sum(len(token.token_ids) for token in tokens) == TOKENS
                self.num_ended = ended = ended + 1
        return ended

    def stop(self) -> int:
        """How many calls ended by themselves, with all their tokens. Raises what any ended with."""
        self._stopping.set()
        with self._pool:
            return sum(each.result(WAIT_S) for each in self._running)


def limit_of(address: str) -> int:
    with Client(address) as client:
        return client.server_info().limits.max_requests


def is_operator_s_at(address: str, word: str) -> bool:
    """Says whether the server takes the word for the operator's token."""
    with Client(address, token=word) as client:
        try:
            client.explain("nobody's")
        except AccessDenied:
            return False
        except NotFound:
            return True
    raise AssertionError


@pytest.mark.parametrize("frontends", [1, 2])
def test_what_is_read_again_holds_from_then_on_and_no_call_is_lost(
    start: Start, tmp_path: Path, frontends: int
) -> None:
    path, token = tmp_path / "n.toml", tmp_path / "token"

    def write(limits: str, word: str, level: str = "info", rest: str = "") -> None:
        path.write_text(
            f"[limits]\n{limits}\n[logs]\nlog_level = '{level}'\n"
            f"[identity]\nadmin_token_file = 'token'\n{rest}"
        )
        token.write_text(word)
        token.chmod(0o600)

    def until(is_true: Callable[[], bool]) -> None:
        ends_at = time.monotonic() + WAIT_S
        while not all(is_true() for _ in range(4 * frontends)):  # connections are dealt out
            assert time.monotonic() < ends_at, process.log

    def limit() -> int:
        return limit_of(process.address)

    def is_operator_s(word: str) -> bool:
        return is_operator_s_at(process.address, word)

    write("max_requests = 300", "first")
    process = start("--config", str(path), "--frontends", str(frontends), "--drain-s", "9")
    load = Load(process.address)
    assert is_operator_s("first")
    for number, (most, word) in enumerate([(200, "second"), (400, "third"), (MOST, "fourth")]):
        write(f"max_requests = {most}", word, rest=f"[scheduler]\nmax_gap = {2 + number}\n")
        process.signal(signal.SIGHUP)
        told = wait_line(process, "configuration read", number + 1)
        assert told["changes"] == ["limits.max_requests", "identity.admin_token_file"]
        late = wait_line(process, "configuration needs a restart", number + 1)
        assert late["settings"] == ["scheduler.max_gap"]
        until(lambda most=most: limit() == most)  # type: ignore[misc]
        until(lambda word=word: is_operator_s(word))  # type: ignore[misc]
        assert not is_operator_s("first")
    with Client(process.address) as client, pytest.raises(InvalidRequest, match=f"at most {MOST}"):
        client.complete("Once", n=MOST + 1, max_tokens=1)

    write("max_requests = 0", "fifth")
    process.signal(signal.SIGHUP)
    said = wait_line(process, "configuration not read")["reason"]
    assert said == f"{path}:2: limits.max_requests must be at least 1, got 0"
    write("max_requests = 300", "two words")
    process.signal(signal.SIGHUP)
    assert "one word" in wait_line(process, "configuration not read", 2)["reason"]
    assert limit() == MOST
    assert is_operator_s("fourth")

    write("max_requests = 300", "last", level="warning", rest="[lifetime]\ndrain_s = 1\n")
    process.signal(signal.SIGHUP)
    until(lambda: limit() == 300)
    until(lambda: is_operator_s("last"))
    assert load.stop() >= STREAMS
    assert process.log.count('"event": "configuration read"') == 3  # not the last: a mere info
    num_calls = process.log.count('"event": "call"')
    with Client(process.address) as client:
        assert client.generate("Once", max_tokens=2).read()
    process.signal(signal.SIGTERM)
    assert process.wait_exit() == 0
    assert process.log.count('"event": "call"') == num_calls
    assert "lost" not in process.log


def test_a_tier_that_the_machine_cannot_keep_is_told_at_the_start_and_after_a_reload(
    start: Start, tmp_path: Path
) -> None:
    """The engine takes 0.1 ms for an iteration, as it says itself."""
    path = tmp_path / "tiers.toml"
    path.write_text("[tiers.hasty]\nttft_s = 1\ntbt_s = 0.00001\n[tiers.fair]\nttlt_s = 1\n")
    process = start("--config", str(path))
    told = wait_line(process, "tier cannot be kept")
    assert (told["tier"], told["target"], told["level"]) == ("tiers.hasty", "tbt_s", "warning")
    assert told["stated_s"] < told["least_s"] < told["least_loaded_s"]
    assert told["note"].startswith("TBT of 0.01 ms cannot be kept: here it takes 0.1 ms even alone")

    def notes() -> dict[str, str]:
        with Client(process.address) as client:
            return {tier.name: tier.note for tier in client.server_info().tiers}

    assert notes() == {"hasty": told["note"], "fair": ""}
    path.write_text(path.read_text() + "[tiers.rash]\nttlt_s = 0.00001\n")
    process.signal(signal.SIGHUP)
    told = wait_line(process, "tier cannot be kept", 2)
    assert (told["tier"], told["target"]) == ("tiers.rash", "ttlt_s")
    path.write_text("[tiers.fair]\nttlt_s = 1\n")
    process.signal(signal.SIGHUP)
    wait_line(process, "configuration read", 2)
    assert process.log.count("cannot be kept: ") == 2
    assert notes() == {"fair": ""}


EARLY = """
import signal, sys

class Look:
    def find_spec(self, name, path=None, target=None):
        if name in ("engine.linking", "grpc", "uvloop"):
            print(name, signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)

sys.meta_path.insert(0, Look())
from server.__main__ import main
main(["--help"])
"""


def test_it_ends_no_server_that_is_only_just_loading() -> None:
    """Which takes seconds on a busy machine; the file is read after that in any case."""
    command = [sys.executable, "-c", EARLY]
    said = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=True)
    seen = [line.split() for line in said.stdout.splitlines()[:3]]
    assert {name for name, _ in seen} == {"engine.linking", "grpc", "uvloop"}
    assert all(is_ignored == "True" for _, is_ignored in seen)


def test_an_engine_that_is_started_again_does_not_read_the_file(tmp_path: Path) -> None:
    """Somebody may be writing it just then."""
    path = tmp_path / "tiers.toml"
    path.write_text("[tiers.old]\nttlt_s = 3\n")
    configuration = Configuration(path)
    path.write_text("[tiers")
    assert list(configuration.propose(()).tiers) == ["old"]
    with pytest.raises(ValueError, match=r"tiers\.toml"):
        configuration.read(path.read_text())
    assert list(configuration.tiers.tiers) == ["old"]


def test_changes_are_named_as_the_file_has_them(tmp_path: Path) -> None:
    path = tmp_path / "tiers.toml"
    path.write_text(
        'default_tier = "batch"\n[tiers.batch]\nttlt_s = 9\n[applications.nightly]\ntier = "batch"'
    )
    found = changes(Tiers(), load(path))
    assert found == [
        *("tiers.batch", "tiers.interactive", "tiers.standard"),
        *("default_tier", "applications.nightly"),
    ]
    assert changes(Tiers(), Tiers()) == []
