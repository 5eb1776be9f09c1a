"""Reflection of both versions, from a real server, as tools ask."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2 as pb

from server.listening import orca
from server.listening.reflecting import SERVICES
from tests.server.conftest import Running, within

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.parametrize("version", SERVICES),
]


async def ask(running: Running, version: str, **question: str) -> pb.ServerReflectionResponse:
    """Asks one question. The messages of both versions are the same on the wire."""
    rpc: Any = running.channel.stream_stream(
        f"/{version}/ServerReflectionInfo",
        request_serializer=pb.ServerReflectionRequest.SerializeToString,
        response_deserializer=pb.ServerReflectionResponse.FromString,
    )
    call = rpc()
    await call.write(pb.ServerReflectionRequest(**question))
    response = await within(call.read())
    call.cancel()
    assert isinstance(response, pb.ServerReflectionResponse)
    return response


async def test_it_lists_the_services(running: Running, version: str) -> None:
    response = await ask(running, version, list_services="")
    names = {service.name for service in response.list_services_response.service}
    own = {"niyama.v1.Inference", "vllm.grpc.engine.VllmEngine"}
    assert names == {*own, "grpc.health.v1.Health", orca.SERVICE, *SERVICES}


async def test_it_has_every_service_that_it_lists_and_all_that_those_need(
    running: Running, version: str
) -> None:
    listed = (await ask(running, version, list_services="")).list_services_response.service
    details = ("google.rpc.BadRequest", "google.rpc.RetryInfo", "google.rpc.ErrorInfo")
    for name in (*(service.name for service in listed), *details):
        found = await ask(running, version, file_containing_symbol=name)
        files = found.file_descriptor_response.file_descriptor_proto
        assert files, name
        pool, waiting = DescriptorPool(), [FileDescriptorProto.FromString(each) for each in files]
        while waiting:  # they come in any order
            added = {file.name for file in waiting}
            ready = [file for file in waiting if not added & set(file.dependency)]
            assert ready
            for file in ready:
                pool.Add(file)
            waiting = [file for file in waiting if file not in ready]
        if name not in details:
            assert pool.FindServiceByName(name).methods


async def test_what_it_has_not_is_not_found(running: Running, version: str) -> None:
    response = await ask(running, version, file_containing_symbol="no.such.Thing")
    assert response.error_response.error_code == 5
