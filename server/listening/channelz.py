"""Channelz: what gRPC itself knows of this process's connections (gRFC A14), for its operator.

It tells who is connected from where, so nobody else may ask. Of several front ends it is the one
that the asking connection has come to. The package is an extra, `channelz`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message

from server.listening.addresses import is_loopback
from server.listening.deliveries import address_of
from server.listening.exposure import FORWARDED

Context = grpc.aio.ServicerContext[Any, Any]


def add_channelz(server: Any, admit: Callable[[Context], None]) -> FileDescriptor:
    """Adds the service to a server, which ends calls with the CallError that their handler raises;
    `admit` raises one for a call that is not the operator's. Returns the file that describes the
    service. Raises ValueError where the package is not there.
    """
    try:
        from grpc_channelz.v1 import channelz, channelz_pb2, channelz_pb2_grpc
    except ImportError as error:
        raise ValueError(f"channelz needs pip install 'niyama[channelz]' ({error})") from error
    descriptor: FileDescriptor = channelz_pb2.DESCRIPTOR
    servicer = channelz.aio.ChannelzServicer()  # type: ignore[attr-defined]
    rpcs = [method.name for method in descriptor.services_by_name["Channelz"].methods]
    guarded = {name: _guarded(getattr(servicer, name), admit) for name in rpcs}
    # Not by the package's own function, which takes any server but gRPC's own for one with threads.
    channelz_pb2_grpc.add_ChannelzServicer_to_server(SimpleNamespace(**guarded), server)
    return descriptor


def _guarded(answer: Any, admit: Callable[[Context], None]) -> Any:
    async def admitted(request: Message, context: Context) -> Message:
        admit(context)
        response: Message = await answer(request, context)
        return response

    return admitted


def is_local(peer: str, metadata: Iterable[tuple[str, object]] = ()) -> bool:
    """Returns whether who calls is on this machine: the peer, named as gRPC names it, is, and by
    the call's metadata it passes on nobody else's call.
    """
    address = None if any(key in FORWARDED for key, _ in metadata) else address_of(peer)
    return address is not None and is_loopback(address[0])
