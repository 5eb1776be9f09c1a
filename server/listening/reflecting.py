"""Reflection, v1 and v1alpha: what services there are, and of what messages, for tools.

grpcio-reflection has the older version alone. The newer one has the same messages under another
name (https://github.com/grpc/grpc/blob/master/doc/server-reflection.md), so one answers for both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

OLDER, NEWER = "grpc.reflection.v1alpha", "grpc.reflection.v1"
SERVICES = tuple(f"{package}.ServerReflection" for package in (NEWER, OLDER))


def add_reflection(files: Iterable[FileDescriptor], server: Any) -> None:
    """Adds both versions of reflection to a server, of the services in these files and its own.
    Tools find the details of errors, too.
    """
    files = list(files)
    names = [service.full_name for file in files for service in file.services_by_name.values()]
    pool = _pool([*files, reflection_pb2.DESCRIPTOR, error_details_pb2.DESCRIPTOR])
    pool.AddSerializedFile(_newer().SerializeToString())
    # Not by its own function, which takes this for a server with threads: each stream would have
    # one of the few that processes are ended by, for as long as it is open.
    servicer = reflection.aio.ReflectionServicer([*names, *SERVICES], pool)  # type: ignore[attr-defined]
    rpc = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in SERVICES:
        handler = grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": rpc})
        server.add_generic_rpc_handlers((handler,))


def _pool(files: Iterable[FileDescriptor]) -> DescriptorPool:
    """Returns a pool of these files, whatever pools they are in, and of those that they import."""
    pool, known = DescriptorPool(), set()

    def add(file: FileDescriptor) -> None:
        if file.name not in known:
            known.add(file.name)
            for each in file.dependencies:
                add(each)
            pool.AddSerializedFile(file.serialized_pb)

    for file in files:
        add(file)
    return pool


def _newer() -> FileDescriptorProto:
    """Returns the file of the newer version, made from that of the older."""
    older = reflection_pb2.DESCRIPTOR.serialized_pb
    file = FileDescriptorProto.FromString(older)
    file.name, file.package = "grpc/reflection/v1/reflection.proto", NEWER
    for field in (field for message in file.message_type for field in message.field):
        if field.HasField("type_name"):
            field.type_name = field.type_name.replace(OLDER, NEWER)
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(OLDER, NEWER)
        method.output_type = method.output_type.replace(OLDER, NEWER)
    return file
