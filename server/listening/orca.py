"""ORCA: the load as balancers of gRPC read it, in a call's trailers and as a stream.

The formats are those of xds.data.orca.v3 and xds.service.orca.v3 (https://github.com/cncf/xds);
gRFC A51 says who reads them. The names of the first two metrics are vLLM's. Of the messages there
is as much here as is sent: the package that has them whole brings all of Envoy's API with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

import grpc
from google.protobuf import duration_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from server.listening.deliveries import Deliveries
from server.loads import FRESH_S, Load

KEY = "endpoint-load-metrics-bin"  # of the trailers
SERVICE = "xds.service.orca.v3.OpenRcaService"
MOST_INTERVAL_S = 3600.0
_DATA, _SERVICES = "xds.data.orca.v3", "xds.service.orca.v3"


def _files() -> tuple[FileDescriptor, FileDescriptor]:
    """Returns the descriptors of both files, in a pool of their own: another library in the process
    may have them whole.
    """
    one = Field.LABEL_OPTIONAL
    data = FileDescriptorProto(
        name="xds/data/orca/v3/orca_load_report.proto", package=_DATA, syntax="proto3"
    )
    report = data.message_type.add(name="OrcaLoadReport")
    for name, number in (("rps_fractional", 6), ("application_utilization", 9)):
        report.field.add(name=name, number=number, type=Field.TYPE_DOUBLE, label=one)
    for name, number in (("request_cost", 4), ("named_metrics", 8)):
        entry = report.nested_type.add(name=name.title().replace("_", "") + "Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=Field.TYPE_STRING, label=one)
        entry.field.add(name="value", number=2, type=Field.TYPE_DOUBLE, label=one)
        report.field.add(
            name=name,
            number=number,
            type=Field.TYPE_MESSAGE,
            type_name=f".{_DATA}.{report.name}.{entry.name}",
            label=Field.LABEL_REPEATED,
        )
    service = FileDescriptorProto(
        name="xds/service/orca/v3/orca.proto",
        package=_SERVICES,
        syntax="proto3",
        dependency=[data.name, duration_pb2.DESCRIPTOR.name],
    )
    request = service.message_type.add(name="OrcaLoadReportRequest")
    request.field.add(
        name="report_interval",
        number=1,
        type=Field.TYPE_MESSAGE,
        type_name=".google.protobuf.Duration",
        label=one,
    )
    request.field.add(
        name="request_cost_names", number=2, type=Field.TYPE_STRING, label=Field.LABEL_REPEATED
    )
    service.service.add(name="OpenRcaService").method.add(
        name="StreamCoreMetrics",
        input_type=f".{_SERVICES}.{request.name}",
        output_type=f".{_DATA}.{report.name}",
        server_streaming=True,
    )
    pool = DescriptorPool()
    pool.AddSerializedFile(duration_pb2.DESCRIPTOR.serialized_pb)
    for file in (data, service):
        pool.AddSerializedFile(file.SerializeToString())
    return pool.FindFileByName(data.name), pool.FindFileByName(service.name)


DATA, DESCRIPTOR = _files()
Report: Any = GetMessageClass(DATA.message_types_by_name["OrcaLoadReport"])
Request: Any = GetMessageClass(DESCRIPTOR.message_types_by_name["OrcaLoadReportRequest"])


def report_of(load: Load) -> Any:
    """Returns the report of a load."""
    named: dict[str, float] = {"kv_cache_usage_perc": load.memory.usage}
    for state in ("waiting", "backlog", "running"):
        amount = getattr(load, state)
        named[f"num_requests_{state}"] = amount.num
        named[f"{state}_seconds"] = amount.seconds
        named[f"{state}_tokens"] = amount.tokens
    named |= {
        "batch_fill": load.batch_fill,
        "generated_tokens_per_second": load.rates.generated_tokens,
        "prefilled_tokens_per_second": load.rates.prefilled_tokens,
        "prefill_tokens_per_second": load.speeds.prefill_tokens_per_s,
        "iteration_seconds": load.speeds.iteration_s,
        "slowdown": load.speeds.slowdown,
    }
    for name, tier in load.tiers.items():
        named[f"queued_work_seconds.{name}"] = tier.queued.seconds
        if tier.outlook is not None:
            named[f"headroom_seconds.{name}"] = tier.outlook.headroom_s
            named[f"ahead_seconds.{name}"] = tier.outlook.ahead.seconds
    return Report(
        named_metrics=named,
        application_utilization=load.demand,
        rps_fractional=load.rates.requests,
    )


class CallReports:
    """Makes the trailers of calls. Of one load there is one text, however many calls end by it."""

    def __init__(self, newest: Callable[[], Load | None]) -> None:
        self._newest = newest
        self._load: Load | None = None
        self._text = b""

    def trailers(self, cost: Mapping[str, float]) -> tuple[tuple[str, bytes], ...]:
        """Returns the trailers of a call that has cost so much, by names; none where no load is
        known.
        """
        load = self._newest()
        if load is None:
            return ()
        if load is not self._load:
            self._load, self._text = load, report_of(load).SerializeToString()
        # Two messages in a row are one that has the fields of both.
        return ((KEY, self._text + Report(request_cost=cost).SerializeToString()),)


class OpenRca:
    """`xds.service.orca.v3.OpenRcaService`: the load as often as a client asks for it, and no more
    often than it is known anew.
    """

    def __init__(self, now: Callable[[], Awaitable[Load | None]], deliveries: Deliveries) -> None:
        self._now = now
        self._deliveries = deliveries

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Returns the handler of the service's one RPC."""
        rpc = grpc.unary_stream_rpc_method_handler(
            self._stream,
            request_deserializer=Request.FromString,
            response_serializer=Report.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"StreamCoreMetrics": rpc})

    async def _stream(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
        """Writes the load now and then, until the client leaves; nothing while no engine serves."""
        asked_s = request.report_interval.seconds + request.report_interval.nanos * 1e-9
        interval_s = max(FRESH_S, min(MOST_INTERVAL_S, asked_s))
        delivery = self._deliveries.begin(context)
        while True:
            load = await self._now()
            if load is not None:
                delivery.pending = report = report_of(load)
                await context.write(report)
                delivery.pending = None
            await asyncio.sleep(interval_s)
