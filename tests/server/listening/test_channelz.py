"""What gRPC knows of connections is told to the operator, and to nobody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from server.listening.channelz import is_local
from tests.server_process import ServerProcess

pytest.importorskip("grpc_channelz", reason="the extra channelz is not installed")

from grpc_channelz.v1 import channelz_pb2 as pb
from grpc_channelz.v1 import channelz_pb2_grpc

TOKEN = "a-word-that-nobody-guesses"


@pytest.mark.parametrize(
    ("peer", "is_here"),
    [
        ("ipv4:127.0.0.1:5", True),
        ("ipv6:%5B::1%5D:5", True),
        ("ipv6:%5B::ffff:127.0.0.1%5D:5", True),
        ("ipv4:192.0.2.1:5", False),
        ("unix:", False),
    ],
)
def test_who_is_on_this_machine(peer: str, is_here: bool) -> None:
    assert is_local(peer) is is_here


def test_the_operator_sees_the_server_s_own_connection(tmp_path: Path) -> None:
    """By the token alone, where there is one: a proxy on this machine makes everybody local."""
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    flags = ("--channelz", "--admin-token-file", str(token))
    with ServerProcess(tmp_path / "log", *flags, module="tests.null_server") as server:
        server.wait_ready()
        with grpc.insecure_channel(server.address) as channel:
            stub: Any = channelz_pb2_grpc.ChannelzStub(channel)
            for metadata in ((), (("authorization", "Bearer wrong"),)):
                with pytest.raises(grpc.RpcError) as caught:
                    stub.GetServers(pb.GetServersRequest(), metadata=metadata, timeout=60)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            shown = (("authorization", f"Bearer {TOKEN}"),)
            (told,) = stub.GetServers(pb.GetServersRequest(), metadata=shown, timeout=60).server
            sockets = stub.GetServerSockets(
                pb.GetServerSocketsRequest(server_id=told.ref.server_id),
                metadata=shown,
                timeout=60,
            )
            (own,) = sockets.socket_ref
            request = pb.GetSocketRequest(socket_id=own.socket_id)
            data = stub.GetSocket(request, metadata=shown, timeout=60).socket.data
            assert data.streams_started == 5


def test_without_a_token_whoever_is_here_is_the_operator(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "log", "--channelz", module="tests.null_server") as server:
        server.wait_ready()
        with grpc.insecure_channel(server.address) as channel:
            stub: Any = channelz_pb2_grpc.ChannelzStub(channel)
            assert len(stub.GetServers(pb.GetServersRequest(), timeout=60).server) == 1
            for name in ("x-forwarded-for", "forwarded", "via", "x-real-ip"):
                elsewhere = ((name, "192.0.2.1"),)  # as a proxy on this machine says
                with pytest.raises(grpc.RpcError) as caught:
                    stub.GetServers(pb.GetServersRequest(), metadata=elsewhere, timeout=60)
                assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
