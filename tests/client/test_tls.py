"""TLS to a real gRPC server: who is trusted, who shows a certificate, what is told otherwise."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from niyama.client import (
    AccessDenied,
    AsyncClient,
    Client,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from niyama.client.__main__ import main
from niyama.client.options import ConnectionOptions
from tests.client.little_server import LittleInference, serving
from tests.server.identity.authority import Authority, Issued
from tests.server.identity.conftest import walled


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def shown(authority: Authority) -> Issued:
    """What the server shows."""
    return authority.issue()


@contextlib.asynccontextmanager
async def encrypted(
    servicer: LittleInference, shown: Issued, clients_of: Authority | None = None
) -> AsyncIterator[str]:
    """A server that speaks TLS, and wants a client's certificate where it knows an authority."""
    own = [(shown.key, shown.certificate)]
    credentials = (
        grpc.ssl_server_credentials(own)
        if clients_of is None
        else grpc.ssl_server_credentials(own, clients_of.certificate, require_client_auth=True)
    )
    async with serving(servicer, credentials) as address:
        yield address.replace("127.0.0.1", "localhost")


@pytest.fixture
async def secure(servicer: LittleInference, shown: Issued) -> AsyncIterator[str]:
    async with encrypted(servicer, shown) as address:
        yield address


async def stream(address: str, **options: object) -> str:
    chosen = ConnectionOptions(**options, retries=False)  # type: ignore[typeddict-item]
    async with AsyncClient(address, **chosen) as client:
        return await client.generate("one two").read()


async def test_a_server_is_trusted_by_its_authority(
    secure: str, servicer: LittleInference, authority: Authority, tmp_path: Path
) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(authority.certificate)
    for ca in (authority.certificate, path, str(path)):
        assert await stream(secure, ca=ca, token="word") == "one two "
    assert servicer.tokens == ["Bearer word"] * 3

    def in_a_thread() -> str:
        with Client(secure, tls=True, ca=path, token="word") as client:
            return client.generate("one two").read()

    assert await asyncio.to_thread(in_a_thread) == "one two "


async def test_whom_the_machine_trusts_is_trusted(
    secure: str, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by every other program: gRPC for Python would not look there."""
    path = tmp_path / "ca.pem"
    path.write_bytes(authority.certificate)
    monkeypatch.delenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    assert await stream(secure, tls=True) == "one two "


async def test_nobody_else_is_trusted(secure: str) -> None:
    for options in ({"tls": True}, {"ca": Authority("another").certificate}):
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await stream(secure, **options)


async def test_plaintext_to_a_server_that_speaks_tls_is_unavailable(secure: str) -> None:
    with pytest.raises(Unavailable):
        await stream(secure)


async def test_tls_to_a_server_that_does_not_speak_it_is_unavailable(address: str) -> None:
    with pytest.raises(Unavailable, match="handshake"):
        await stream(address, tls=True)


async def test_it_may_be_said_whom_the_certificate_names(secure: str, authority: Authority) -> None:
    ca = authority.certificate
    assert await stream(secure, ca=ca, server_name="127.0.0.1") == "one two "
    with pytest.raises(Unavailable, match=r"Hostname Verification|niyama\.example"):
        await stream(secure, ca=ca, server_name="niyama.example")


async def test_a_client_shows_its_certificate(
    servicer: LittleInference, shown: Issued, authority: Authority, tmp_path: Path
) -> None:
    mine = authority.issue("caller")
    cert, key = mine.write(tmp_path, "caller")
    async with encrypted(servicer, shown, authority) as address:
        ca = authority.certificate
        assert await stream(address, ca=ca, cert=cert, key=key) == "one two "
        assert await stream(address, ca=ca, cert=mine.certificate, key=mine.key) == "one two "
        with pytest.raises(Unavailable):
            await stream(address, ca=ca)


async def test_the_service_knows_who_calls(tmp_path: Path, authority: Authority) -> None:
    """Both clients, each call of a stream's life, by the server itself."""
    ca = authority.certificate
    async with walled(tmp_path, authority) as server:
        path = tmp_path / "token"
        path.write_text(server.tokens["acme"])
        async with AsyncClient(server.address, ca=ca, token=path) as client:
            stream = client.generate([7], max_tokens=2, ignore_eos=True, request_id="mine")
            assert sum([len(tokens.token_ids) async for tokens in stream]) == 2
            assert (await client.explain("mine")).request_id == "mine"
            path.write_text(server.tokens["zen"])
            with pytest.raises(NotFound):
                await client.explain("mine")
        async with AsyncClient(server.address, ca=ca, token=server.tokens["operator"]) as operator:
            assert (await operator.explain("mine")).tenant == "acme"

        def by_a_stranger() -> None:
            with Client(server.address, ca=ca, token="wrong") as stranger:
                for call in (stranger.generate([7]).read, stranger.server_info):
                    with pytest.raises(AccessDenied) as caught:
                        call()
                    assert caught.value.reason == "UNAUTHENTICATED"

        await asyncio.to_thread(by_a_stranger)


async def test_the_command_speaks_tls(
    secure: str,
    servicer: LittleInference,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    (tmp_path / "token").write_text("word\n")
    flags = ["--ca", str(tmp_path / "ca.pem"), "--token-file", str(tmp_path / "token")]
    assert await asyncio.to_thread(main, ["--server", secure, *flags, "one two"]) == 0
    for name, text in (("CA", flags[1]), ("TLS", "true"), ("SERVER", secure)):
        monkeypatch.setenv(f"NIYAMA_{name}", text)
    assert await asyncio.to_thread(main, ["one two"]) == 0
    assert capsys.readouterr().out == "one two \none two \n"
    assert servicer.tokens == ["Bearer word", ""]


def test_what_is_no_certificate_is_told_when_the_client_is_made(
    authority: Authority, tmp_path: Path
) -> None:
    mine, here = authority.issue("caller"), "localhost:1"
    missing = tmp_path / "missing.pem"
    wrong: list[tuple[dict[str, object], str, str]] = [
        ({"ca": missing}, "ca", f"ca {missing}: No such file or directory"),
        ({"ca": b"nothing"}, "ca", "ca holds no certificates in PEM"),
        ({"ca": mine.key}, "ca", "ca holds no certificates in PEM"),
        ({"ca": 5}, "ca", "ca is a file's path, or PEM as bytes"),
        ({"cert": mine.certificate}, "key", "key is required: cert and key go together"),
        ({"key": mine.key}, "cert", "cert is required: cert and key go together"),
        ({"cert": mine.key, "key": mine.key}, "cert", "cert holds no certificates in PEM"),
        (
            {"cert": mine.certificate, "key": mine.certificate},
            "key",
            "key holds no private key in PEM",
        ),
        ({"tls": False, "ca": authority.certificate}, "ca", "ca is for TLS, which is turned off"),
        ({"tls": "yes"}, "tls", "tls is true or false, not 'yes'"),
        ({"server_name": "a"}, "server_name", "server_name is for TLS"),
    ]
    for options, field, message in wrong:
        with pytest.raises(InvalidRequest) as caught:
            Client(here, **options)  # type: ignore[arg-type]  # what is tested
        assert (caught.value.field, str(caught.value)) == (field, message)
