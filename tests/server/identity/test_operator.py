"""The operator asks about anybody's requests; nobody else learns of another tenant's."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.config import EngineConfig
from niyama.client import AccessDenied, AsyncClient, InvalidRequest, NotFound
from niyama.client.__main__ import main
from server.app import Server
from server.config import ServerConfig, StartError
from server.errors import CallError
from server.identity import files
from server.identity.identities import Identities
from tests.engine.driving.engines import NULL
from tests.server.conftest import within

TOKEN = "a-word-that-nobody-guesses"


def file_of(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "token"
    path.write_text(text)
    path.chmod(mode)
    return path


@contextlib.asynccontextmanager
async def served(token_file: Path, frontends: int = 1) -> AsyncIterator[str]:
    config = ServerConfig(
        port=0,
        drain_s=0.0,
        frontends=frontends,
        admin_token_file=token_file,
        engine=EngineConfig(factory=NULL),
    )
    server = Server(config)
    try:
        await within(server.start())
        yield f"127.0.0.1:{server.port}"
    finally:
        await within(server.stop())


@pytest.mark.parametrize("frontends", [1, 2])
async def test_an_operator_explains_any_tenant_s_request(tmp_path: Path, frontends: int) -> None:
    async with served(file_of(tmp_path, TOKEN + "\n"), frontends) as address:
        for tenant, request_id in (("a", "alone"), ("a", "both"), ("", "both")):
            async with AsyncClient(address, tenant=tenant) as client:
                await within(client.complete([7], max_tokens=1, request_id=request_id))
        async with AsyncClient(address, token=TOKEN) as operator:
            assert (await within(operator.explain("alone"))).decisions
            assert (await within(operator.explain("both", ""))).decisions
            assert (await within(operator.explain("both", "a"))).decisions
            with pytest.raises(InvalidRequest, match=r"must be given: 2 tenants .* \('', 'a'\)"):
                await within(operator.explain("both"))
            with pytest.raises(NotFound, match="no request 'never' of any tenant is remembered"):
                await within(operator.explain("never"))
        async with AsyncClient(address, tenant="b") as stranger:
            told = []
            for request_id in ("alone", "unheard-of"):
                with pytest.raises(NotFound, match="of tenant 'b'") as caught:
                    await within(stranger.explain(request_id))
                told.append(str(caught.value).replace(request_id, "ID"))
            assert told[0] == told[1], "whether there is such an id is not told"
        async with AsyncClient(address, tenant="a", token="another") as guess:
            with pytest.raises(AccessDenied):
                await within(guess.explain("alone"))


async def test_where_there_is_no_operator_a_token_says_nothing(tmp_path: Path) -> None:
    """A gateway may send what is meant for others."""
    assert not Identities().is_operator(["Bearer of-another-service"])
    known = files.read(ServerConfig(admin_token_file=file_of(tmp_path, TOKEN)))
    with pytest.raises(CallError):
        Identities(known).is_operator(["Basic eA=="])


async def test_the_command_asks_with_the_token_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_of(tmp_path, TOKEN)
    async with served(path) as address:
        async with AsyncClient(address, tenant="a") as client:
            await within(client.complete([7], max_tokens=1, request_id="alone"))

        async def run(*arguments: str) -> int:
            return await asyncio.to_thread(main, ["--server", address, *arguments])

        assert await run("explain", "alone") == 1
        assert "no request 'alone' without a tenant is remembered" in capsys.readouterr().err
        assert await run("--token-file", str(path), "explain", "alone") == 0
        assert "admitted" in capsys.readouterr().out
        monkeypatch.setenv("NIYAMA_TOKEN_FILE", str(path))
        assert await run("explain", "alone") == 0
        assert await run("--tenant", "", "explain", "alone") == 1
        assert await run("--token-file", str(tmp_path / "none"), "explain", "alone") == 2
        assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        (TOKEN, 0o644, "others may read or change it (mode 0644): chmod 600"),
        (TOKEN, 0o620, "others may read or change it"),
        ("", 0o600, "a token is one word"),
        ("two words", 0o600, "a token is one word"),
        ("naïve", 0o600, "a token is one word"),
        ("x" * 5000, 0o600, "a token is one word"),
    ],
)
def test_a_file_that_keeps_no_secret_is_told_at_start(
    tmp_path: Path, text: str, mode: int, message: str
) -> None:
    path = file_of(tmp_path, text, mode)
    config = ServerConfig(admin_token_file=path)
    with pytest.raises(ValueError) as caught:
        files.read(config)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert TOKEN not in str(caught.value)


async def test_a_server_without_its_token_file_does_not_start(tmp_path: Path) -> None:
    for frontends in (1, 2):
        with pytest.raises(StartError, match="No such file"):
            async with served(tmp_path / "missing", frontends):
                pass


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "token"
    os.mkfifo(path, 0o600)
    with pytest.raises(ValueError, match="is a pipe that nobody writes to"):
        files.read(ServerConfig(admin_token_file=path))
