"""The HTTP of the metrics port: a real server, asked by real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from prometheus_client import CollectorRegistry

from engine.config import EngineConfig
from niyama.client import AsyncClient
from server.app import Server
from server.config import ServerConfig
from server.identity import files
from server.identity.identities import Identities
from server.listening.exposition import MOST_CONNECTIONS, Exposition
from server.status.findings import Parts, Phase
from server.status.loop import LoopLine, LoopSilent
from server.status.site import MOST_ASKING, Site
from tests.engine.driving.engines import NULL
from tests.server.conftest import within
from tests.server.status.night import HOSTILE, Night

TOKEN = "a-word-that-nobody-guesses"
PATHS = ("/", "/status.json", "/metrics", "/healthz", "/readyz", "/inferred.toml")
WAIT_S = 60.0


class Told:
    """An answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        assert self.headers["Content-Type"] == "application/json"
        return json.loads(self.body)


def ask(port: int, path: str, method: str = "GET", **headers: str) -> Told:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    try:
        connection.request(
            method, path, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
        answer = connection.getresponse()
        return Told(answer.status, dict(answer.getheaders()), answer.read())
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def served(**changes: Any) -> AsyncIterator[tuple[Server, int]]:
    """A server without a model, and its port for metrics."""
    port = free_port()
    engine = EngineConfig(factory=NULL)
    server = Server(ServerConfig(port=0, metrics_port=port, drain_s=0.0, engine=engine, **changes))
    try:
        await within(server.start())
        yield server, port
    finally:
        await within(server.stop())


@contextlib.contextmanager
def exposed(night: Night, admin: Identities | None = None) -> Iterator[int]:
    site = Site(CollectorRegistry(), night, admin or Identities())  # type: ignore[arg-type]
    exposition = Exposition(site)
    try:
        yield exposition.serve("127.0.0.1", 0)
    finally:
        exposition.stop()


@pytest.mark.parametrize("frontends", [1, 2])
async def test_every_page_of_a_server(tmp_path: Path, frontends: int) -> None:
    tiers = tmp_path / "tiers.toml"
    tiers.write_text("[tiers.tight]\nttlt_s = 1e-6\n[tenants.acme]\n")
    async with served(frontends=frontends, config=tiers) as (server, port):
        async with AsyncClient(f"127.0.0.1:{server.port}", tenant=HOSTILE) as client:
            await within(client.complete([7], max_tokens=2, request_id=HOSTILE))
        for path in PATHS:
            assert (await asyncio.to_thread(ask, port, path)).status == 200, path
        told = await _with_decisions(port)
        assert (told["phase"], told["ready"]) == ("serving", True)
        assert told["explain"] == {"needs_token": False, "may_ask": True, "why_not": ""}
        assert "late" in [each["kind"] for each in told["decisions"]]
        assert {each["tenant"] for each in told["decisions"]} == {HOSTILE}
        lines = [each["line"] for each in told["findings"]]
        assert "tiers.tight cannot be kept on this machine" in lines
        for query in ({}, {"tenant": HOSTILE}):
            path = f"/explain?{urlencode({'request_id': HOSTILE} | query)}"
            story = (await asyncio.to_thread(ask, port, path)).json
            assert story["request_id"] == HOSTILE
            assert [each["kind"] for each in story["decisions"]][-1] == "finished"
        other = f"/explain?{urlencode({'request_id': HOSTILE, 'tenant': ''})}"
        answer = await asyncio.to_thread(ask, port, other)
        assert answer.status == 404
        assert "is remembered" in answer.json["error"]
        await _is_lost(server, port)
        server.operating.is_draining = True
        answer = await asyncio.to_thread(ask, port, "/readyz")
        assert (answer.status, answer.body) == (503, b"not ready: draining\n")


async def _with_decisions(port: int) -> Any:
    """What the status page shows, once the engine has told it of decisions."""

    async def look() -> Any:
        while not (told := (await asyncio.to_thread(ask, port, "/status.json")).json)["decisions"]:
            pass
        return told

    return await within(look())


async def _is_lost(server: Server, port: int) -> None:
    """Looks at the pages while there is no engine."""
    server.engine.link.info, info = None, server.engine.link.info
    server.engine.lost_reason = f"signal 9 {HOSTILE}"
    told = await asyncio.to_thread(ask, port, "/status.json")
    assert told.json["findings"][0]["line"] == "no engine"
    assert HOSTILE in told.json["findings"][0]["detail"]
    assert (await asyncio.to_thread(ask, port, "/readyz")).body == b"not ready: lost\n"
    assert (await asyncio.to_thread(ask, port, "/healthz")).status == 200
    answer = await asyncio.to_thread(ask, port, "/explain?request_id=a")
    assert answer.status == 503
    assert "the engine is starting" in answer.json["error"]
    server.engine.link.info = info


def test_a_server_that_is_starting_is_alive_and_not_ready() -> None:
    with exposed(Night(False, Parts(Phase.STARTING, serving=0))) as port:
        assert ask(port, "/readyz").body == b"not ready: starting\n"
        assert ask(port, "/healthz").body == b"alive\n"


async def test_who_asks_a_loop_that_hangs_is_told_so_in_bounded_time() -> None:
    loop = asyncio.get_running_loop()

    async def answer() -> str:
        return "here"

    assert await asyncio.to_thread(LoopLine(loop, WAIT_S).ask, answer) == "here"
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(LoopLine(loop, 0.01).ask, answer)
        with pytest.raises(LoopSilent, match=r"no answer within 0\.01 s"):
            asked.result(WAIT_S)  # and meanwhile the event loop stands still


def test_a_page_that_the_loop_does_not_answer_for_is_503() -> None:
    class Silent(Night):
        def parts(self) -> Parts:
            raise LoopSilent("no answer within 2 s")

        document = explain = parts  # type: ignore[assignment]

    with exposed(Silent(False)) as port:
        for path in ("/healthz", "/readyz", "/status.json"):
            assert ask(port, path).status == 503, path
        assert ask(port, "/").status == 200


@pytest.fixture(scope="module")
def calm() -> Iterator[int]:
    """The port of the pages of a calm night."""
    with exposed(Night(is_bad=False)) as port:
        yield port


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "BREW"])
def test_there_is_nothing_else(calm: int, method: str) -> None:
    for path in ("/nothing", "/status", "/..%2f", "/metrics/", "/explain/x", "*"):
        assert ask(calm, path, method).status == 404, path


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_pages_are_read_only(calm: int, method: str) -> None:
    for path in (*PATHS, "/explain"):
        answer = ask(calm, path, method)
        assert answer.status == 405, path
        assert answer.headers["Allow"] == "GET, HEAD"


def test_heads_are_as_the_pages_are_and_every_page_forbids_what_it_does_not_need(
    calm: int,
) -> None:
    for path in ("/", "/status.json", "/healthz", "/readyz", "/explain?request_id=a"):
        whole, head = ask(calm, path), ask(calm, path, "HEAD")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["Content-Length"] == str(len(whole.body))
        policy = whole.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert whole.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "request_id"),
        ("request_id=", "request_id"),
        ("request_id=" + 300 * "x", "request_id"),
        ("request_id=a%00b", "request_id"),
        ("request_id=a&tenant=" + 300 * "x", "niyama-tenant"),
        ("&".join(f"x{i}=1" for i in range(50)), "request_id"),
    ],
)
def test_a_question_that_makes_no_sense_is_told_why(calm: int, query: str, field: str) -> None:
    answer = ask(calm, f"/explain?{query}")
    assert answer.status == 400, answer.body
    assert field in answer.json["error"]
    assert len(answer.body) < 2000


@pytest.mark.parametrize("version", ["bogus", "1.x", "1..0", "9" * 5000, "\xff"])
def test_metrics_of_a_format_that_is_none_are_told_as_plain_text(calm: int, version: str) -> None:
    told = ask(calm, "/metrics", Accept=f"application/openmetrics-text;version={version}")
    assert told.status == 200
    assert told.headers["Content-Type"].startswith("text/plain")


def test_with_a_token_only_who_shows_it_learns_of_single_requests(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o600)
    with exposed(Night(True), Identities(files.read(ServerConfig(admin_token_file=path)))) as port:
        for headers in ({}, {"Authorization": "Bearer guess"}, {"Authorization": "Basic x"}):
            answer = ask(port, "/explain?request_id=a", **headers)
            assert answer.status == 401, headers
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            told = ask(port, "/status.json", **headers).json
            assert "decisions" not in told
            assert told["explain"]["needs_token"]
            assert not told["explain"]["may_ask"]
        shown = {"Authorization": f"Bearer {TOKEN}"}
        assert ask(port, "/explain?request_id=a", **shown).json["request_id"] == "a"
        assert len(ask(port, "/status.json", **shown).json["decisions"]) == 12


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example"},
        {"Host": "127.0.0.1.evil.example:80"},
        {"X_Forwarded_For": "127.0.0.1"},
        {"Forwarded": "for=10.0.0.1"},
    ],
)
def test_without_a_token_only_who_is_here_learns_of_single_requests(
    calm: int, headers: dict[str, str]
) -> None:
    """A page of another site may have its name lead a browser here; a proxy's callers are not
    here.
    """
    assert ask(calm, "/explain?request_id=a", **headers).status == 403
    assert "decisions" not in ask(calm, "/status.json", **headers).json
    for here in ("localhost", "localhost:1", "127.0.0.1", "[::1]:9464"):
        assert ask(calm, "/explain?request_id=a", Host=here).status == 200


def test_many_who_ask_for_explain_leave_the_other_pages_to_others() -> None:
    go, inside = threading.Event(), threading.Semaphore(0)

    class Slow(Night):
        def explain(self, request_id: str, tenant: str | None) -> Any:
            inside.release()
            assert go.wait(WAIT_S)
            return super().explain(request_id, tenant)

    with exposed(Slow(False)) as port, ThreadPoolExecutor(MOST_ASKING) as pool:
        asked = [pool.submit(ask, port, "/explain?request_id=a") for _ in range(MOST_ASKING)]
        for _ in asked:
            assert inside.acquire(timeout=WAIT_S)
        answer = ask(port, "/explain?request_id=a")
        assert answer.status == 503
        assert "ask again" in answer.json["error"]
        assert ask(port, "/healthz").status == 200
        go.set()
        assert [each.result(WAIT_S).status for each in asked] == [200] * MOST_ASKING


def test_many_clients_are_served_by_few_threads() -> None:
    """However many are silent or slow meanwhile."""
    before = threading.active_count()
    with exposed(Night(False)) as port, contextlib.ExitStack() as stack:
        for _ in range(3 * MOST_CONNECTIONS):
            silent = stack.enter_context(socket.create_connection(("127.0.0.1", port), WAIT_S))
            silent.sendall(b"GET / HTTP/1.1\r\nHost: ")
        assert threading.active_count() <= before + MOST_CONNECTIONS + 1
        with ThreadPoolExecutor(MOST_CONNECTIONS // 2) as pool:
            answers = pool.map(lambda _: ask(port, "/healthz").status, range(200))
            assert list(answers) == [200] * 200
