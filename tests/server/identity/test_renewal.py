"""Certificates and tokens that are renewed count without a restart, and bad ones change nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
import structlog

from server.config import ServerConfig
from server.identity import files, watching
from tests.server.conftest import until, within
from tests.server.identity.authority import Authority
from tests.server.identity.conftest import Walled, lines, walled, write
from tests.server.identity.test_walk import ask

LOOK_S = 0.02


@pytest_asyncio.fixture
async def own(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Walled]:
    monkeypatch.setattr(watching, "LOOK_S", LOOK_S)
    async with walled(tmp_path, authority) as server:
        yield server


async def until_ok(own: Walled, who: str, of: Callable[[str], bool]) -> None:
    """Calls on new connections until one ends as wanted."""

    async def call() -> None:
        while True:
            async with own.channel() as channel:
                if of(await ask(channel, "GetServerInfo", own.shows(who))):
                    return

    await within(call())


async def test_a_certificate_that_is_renewed_is_shown_to_who_comes_and_cuts_nobody(
    own: Walled, tmp_path: Path
) -> None:
    async with own.channel() as before:
        assert await ask(before, "Generate", own.shows("acme")) == "OK"
        another = Authority()
        another.issue().write(tmp_path, "server")
        own.authority = another
        await until_ok(own, "acme", lambda code: code == "OK")
        assert await ask(before, "Generate", own.shows("acme")) == "OK"


async def test_files_that_are_no_good_are_told_once_and_change_nothing(
    own: Walled, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until they are good: also where a certificate comes before its key."""
    other = authority.issue()
    tried: list[ServerConfig] = []

    def read(config: ServerConfig) -> files.Files:
        tried.append(config)
        return really(config)

    really = files.read
    monkeypatch.setattr(files, "read", read)
    with structlog.testing.capture_logs() as logged:

        def told(event: str) -> list[str]:
            return [str(line) for line in logged if line["event"] == event]

        (tmp_path / "server.pem").write_bytes(other.certificate)
        await until(lambda: len(told("identity not read")) == 1)
        await until(lambda: len(tried) >= 5)  # at each of which it would be told again
        write(tmp_path / "tokens.toml", "nonsense")
        other.write(tmp_path, "server")
        await until(lambda: len(told("identity not read")) == 2)
        async with own.channel() as channel:
            assert await ask(channel, "Generate", own.shows("acme")) == "OK"
        write(tmp_path / "tokens.toml", "")
        await until(lambda: len(told("identity read")) == 1)
    assert "is not the key of" in told("identity not read")[0]
    assert "tokens.toml:1:" in told("identity not read")[1]
    (read,) = told("identity read")
    assert "identity.tokens_file" in read
    assert "identity.tls_certificate" in read
    async with own.channel() as channel:
        assert await ask(channel, "Generate", own.shows("acme")) == "UNAUTHENTICATED"


async def test_who_may_have_anything_for_want_of_a_table_is_told_where_others_may_not(
    own: Walled, tmp_path: Path
) -> None:
    """A tenant that was limited and has lost its table would else have gold without a word."""
    path = tmp_path / "niyama.toml"
    rights = path.read_text()
    with structlog.testing.capture_logs() as logged:

        async def told(text: str) -> list[str]:
            logged.clear()
            write(path, text)
            await own.server.reload()
            return [line["note"] for line in logged if line["event"] == "tenants not named"]

        assert await told(rights + "# a comment\n") == []  # since it has been told at the start
        (note,) = await told(rights.replace("[tenants.acme]", "[tenants.acne]"))
        assert ": acme, late, unnamed;" in note
        other = '[tenants.other]\ntiers = ["bronze"]\n'
        assert await told(rights + other) == []
        (note,) = await told(rights)
        assert ": late, unnamed;" in note
        _, text = lines([f"t{i}" for i in range(9)])
        write(tmp_path / "tokens.toml", text)
        (note,) = await told(rights + "# another\n")
        assert ": t0, t1, t2, t3, t4 and 4 more;" in note
        free = rights.replace('tiers = ["bronze", "silver"]\nimportance = "normal"\n', "")
        assert await told(free) == []  # nobody is limited


async def test_a_token_that_is_taken_back_is_nobody_s_on_open_connections_too(
    own: Walled, tmp_path: Path
) -> None:
    made, text = lines(["acme", "zen"])
    async with own.channel() as channel:
        assert await ask(channel, "Generate", own.shows("acme")) == "OK"
        write(tmp_path / "tokens.toml", text)
        old = own.shows("acme")
        own.tokens |= made
        await until_ok(own, "acme", lambda code: code == "OK")
        assert await ask(channel, "Generate", old) == "UNAUTHENTICATED"
        assert await ask(channel, "Generate", own.shows("zen")) == "OK"


@pytest.mark.parametrize("frontends", [1, 2])
async def test_all_front_ends_take_what_is_read_when_the_operator_says_so(
    tmp_path: Path, authority: Authority, frontends: int
) -> None:
    """SIGHUP: rights, too; and a file that is no good changes nothing at all."""
    async with walled(tmp_path, authority, frontends=frontends) as own:
        made, text = lines(["acme", "zen"])
        write(tmp_path / "tokens.toml", text)
        own.authority = Authority()
        own.authority.issue().write(tmp_path, "server")
        rights = (tmp_path / "niyama.toml").read_text()
        write(tmp_path / "niyama.toml", rights + "[tenants.new]\nspeaks_for_others = true\n")
        changes = await own.server.reload()
        assert set(changes.made) >= {"tenants.new", "identity.tokens_file"}
        own.tokens |= made

        async def all_take_it() -> None:
            good = 0
            while good < 8:  # connections are dealt out
                async with own.channel() as channel:
                    code = await ask(channel, "GetServerInfo", own.shows("zen"))
                    good = good + 1 if code == "OK" else 0

        await within(all_take_it())
        write(tmp_path / "server.key", "nonsense")
        write(tmp_path / "niyama.toml", rights + "[tenants.newer]\n")
        with pytest.raises(ValueError, match="--tls-key"):
            await own.server.reload()
        assert "newer" not in own.server.configuration.tiers.tenants
        async with own.channel() as channel:
            assert await ask(channel, "Generate", own.shows("acme")) == "OK"


async def test_a_port_without_tls_is_told_nothing_by_a_client_that_wants_it(
    tmp_path: Path, authority: Authority
) -> None:
    plain = {"tls_certificate": None, "tls_key": None}
    async with walled(tmp_path, authority, **plain) as own:
        async with own.channel() as channel:
            assert await ask(channel, "Check", ()) == "UNAVAILABLE"
        async with grpc.aio.insecure_channel(own.address) as channel:
            assert await ask(channel, "Generate", own.shows("acme")) == "OK"
            assert await ask(channel, "Generate", ()) == "UNAUTHENTICATED"
