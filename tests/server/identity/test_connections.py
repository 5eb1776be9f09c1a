"""What connections may take where callers are asked: nothing is received of a stranger, no
handshake lasts for ever, pings are suffered, and no connection is kept for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from tests.http2 import ACK, DATA, GOAWAY, HEADERS, PING, Http2
from tests.server.conftest import within
from tests.server.identity.authority import Authority
from tests.server.identity.conftest import Walled, walled
from tests.server.identity.test_walk import ask

PINGS = 50
GENERATE = "/niyama.v1.Inference/Generate"
PLAIN = {"tls_certificate": None, "tls_key": None}
RECORD = b"\x16\x03\x01"  # how a TLS handshake begins


@contextlib.asynccontextmanager
async def plain(folder: Path, authority: Authority, **limits: float) -> AsyncIterator[Walled]:
    """A server that asks for tokens, and speaks no TLS: what is said to it is made by hand."""
    async with walled(folder, authority, **PLAIN, **limits) as server:
        yield server


async def test_a_stranger_is_told_so_before_a_byte_of_its_message_has_come(
    tmp_path: Path, authority: Authority
) -> None:
    async with plain(tmp_path, authority) as server:
        with await asyncio.to_thread(Http2, server.address, 1 << 16) as client:
            stream = client.open(GENERATE)
            ended = await asyncio.to_thread(client.until, HEADERS, stream)
            assert ended is not None
            assert b"UNAUTHENTICATED" in ended.payload or b"who calls is not known" in ended.payload
            head = struct.pack("!BI", 0, 4_000_000)  # of a message that it does not wait for
            client.send(DATA, 0, client.open(GENERATE), head + bytes(10_000))
            assert await asyncio.to_thread(client.until, HEADERS, 3) is not None


async def test_a_client_that_pings_all_the_time_keeps_its_connection(
    tmp_path: Path, authority: Authority
) -> None:
    """gRPC's default suffers two pings without data in five minutes, and then says that it is
    enough: a gateway's, every 30 s, end a silent stream after some two minutes.
    """
    async with plain(tmp_path, authority) as server:
        with await asyncio.to_thread(Http2, server.address) as client:
            for number in range(PINGS):
                client.send(PING, 0, 0, struct.pack("!Q", number))
            for number in range(PINGS):
                frame = await asyncio.to_thread(client.until, PING, 0)
                assert frame is not None, "the connection was closed"
                assert (frame.flags & ACK, frame.payload) == (ACK, struct.pack("!Q", number))
            stream = client.open(GENERATE)
            assert await asyncio.to_thread(client.until, HEADERS, stream) is not None


async def test_a_connection_that_is_old_is_told_to_go_and_its_client_makes_another(
    tmp_path: Path, authority: Authority
) -> None:
    async with plain(tmp_path, authority, age_s=0.2) as server:
        with await asyncio.to_thread(Http2, server.address) as client:
            assert await asyncio.to_thread(client.until, GOAWAY, 0) is not None
        async with grpc.aio.insecure_channel(server.address) as channel:
            for _ in range(20):
                assert await ask(channel, "Generate", server.shows("acme")) == "OK"
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("said", [b"", RECORD, RECORD + b"\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n"])
async def test_a_handshake_that_is_not_made_ends(
    tmp_path: Path, authority: Authority, said: bytes
) -> None:
    async with walled(tmp_path, authority, handshake_s=0.3) as server:
        port = server.server.port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        with contextlib.suppress(ConnectionError):
            await within(reader.read())  # to its end
        writer.close()
        async with server.channel() as channel:
            assert await ask(channel, "Generate", server.shows("acme")) == "OK"


async def test_half_made_handshakes_are_bounded_and_keep_nobody_out_for_longer(
    tmp_path: Path, authority: Authority
) -> None:
    async with walled(tmp_path, authority, handshake_s=1.0, max_connections=8) as server:
        with contextlib.ExitStack() as stack:
            for _ in range(100):
                address = ("127.0.0.1", server.server.port)
                connection = stack.enter_context(socket.create_connection(address, 60))
                with contextlib.suppress(ConnectionError):
                    connection.sendall(RECORD)

            async def until_served() -> None:
                while True:
                    async with server.channel() as channel:
                        if await ask(channel, "Generate", server.shows("acme")) == "OK":
                            return

            await within(until_served())


TALKS = """
import runpy, sys
from server.__main__ import main
try:
    main(["--version"])
except SystemExit:
    pass
runpy.run_path(sys.argv[1], run_name="__main__")
"""
FAILS_A_HANDSHAKE = """
import asyncio, socket, sys
from pathlib import Path
import grpc

async def main():
    pair = [(Path(sys.argv[3]).read_bytes(), Path(sys.argv[2]).read_bytes())]
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair))
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"no handshake, whatever else it is")
    await reader.read()
    writer.close()
    await server.stop(None)

asyncio.run(main())
"""


SENDS_WHAT_NOBODY_CAN_READ = """
import asyncio, sys
import grpc
from tests.http2 import HEADERS, Http2

def send(port):
    for name, value in (("grpc-timeout", "soon"), ("grpc-encoding", "none"), ("x-bin", "!")):
        with Http2(f"127.0.0.1:{port}") as client:
            client.open("/niyama.v1.Inference/Generate", {name: value})
            assert client.until(HEADERS, 1) is not None, name

async def main():
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await asyncio.to_thread(send, port)
    await server.stop(None)

asyncio.run(main())
"""


@pytest.mark.parametrize("does", [FAILS_A_HANDSHAKE, SENDS_WHAT_NOBODY_CAN_READ])
def test_what_a_stranger_sends_amiss_writes_nothing_to_the_log(
    tmp_path: Path, authority: Authority, does: str
) -> None:
    """gRPC would write a line for each, of its own form."""
    script = tmp_path / "fails.py"
    script.write_text(does)
    files = map(str, (script, *authority.issue().write(tmp_path, "server")))
    command = [sys.executable, "-c", TALKS, *files]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stderr == ""
