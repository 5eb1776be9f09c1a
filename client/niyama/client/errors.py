"""What can go wrong with a call: a short tree of errors, made of gRPC's statuses in one place.

NiyamaError           .code, .reason, .about, .retry_after
├── InvalidRequest    the request cannot be served as it is (.field names the culprit, .violations
│                     all of them), or it or its answer is larger than a message may be; a
│                     ValueError
├── RequestIdInUse    a request with that id is in flight
├── NotFound          nothing is known by that id
├── AccessDenied      no valid identity, or not allowed
├── QueueFull         the server refuses more work now (.retry_after says when to try again)
│   └── WouldBeLate   it would be late, and asked to be refused then
├── Unavailable       no server there, or it is starting, draining, or lost its engine
├── TimedOut          the call's own timeout passed; a TimeoutError
├── Cancelled         the call was cancelled, here or there
└── ServerError       anything else: a fault of the server
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status


class Violation(NamedTuple):
    """A field of a request that cannot hold, by its path, and why."""

    field: str
    description: str


class NiyamaError(Exception):
    """Any failure of a call, with what a program can compare.

    `code` is the gRPC status it came from, where there was one; `reason` the server's word for why
    ("QUEUE_FULL"), which keeps its meaning; `about` what that was about, by name; `retry_after` in
    how many seconds the server advises to try again. What the server does not say is "", empty or
    None.
    """

    code: grpc.StatusCode | None = None
    reason: str = ""
    about: Mapping[str, str] = MappingProxyType({})
    retry_after: float | None = None


class InvalidRequest(NiyamaError, ValueError):
    """The request cannot be served as it is. `field` is the path of the first field that is at
    fault; "" means the whole message, when that is too large. `violations` are all that the server
    told.
    """

    def __init__(
        self, message: str, field: str = "", violations: tuple[Violation, ...] = ()
    ) -> None:
        super().__init__(message)
        self.field = field
        self.violations = violations or ((Violation(field, message),) if field else ())


class RequestIdInUse(NiyamaError):
    """A request with that id is in flight."""


class NotFound(NiyamaError):
    """Nothing is known by that id."""


class AccessDenied(NiyamaError):
    """The caller gave no valid identity, or may not do this."""


class QueueFull(NiyamaError):
    """The server refuses more work now. `retry_after` is its advice in seconds, or None."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class WouldBeLate(QueueFull):
    """A target would be missed, and the request asked to be refused then (`refuse_if_late`)."""


class Unavailable(NiyamaError):
    """No server answers there, or it is starting, draining, or lost its engine."""


class TimedOut(NiyamaError, TimeoutError):
    """The timeout given with the call passed."""


class Cancelled(NiyamaError):
    """The call was cancelled."""


class ServerError(NiyamaError):
    """A fault of the server."""


_PLAIN: dict[grpc.StatusCode, type[NiyamaError]] = {
    grpc.StatusCode.ALREADY_EXISTS: RequestIdInUse,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
    grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
    grpc.StatusCode.CANCELLED: Cancelled,
}

# gRPC's words for a message and for metadata, with the size and the limit after them.
_TOO_LARGE = ("larger than max", "metadata size exceeds")
_TOO_LATE = "Deadline Exceeded"  # gRPC's own words, alone or in brackets
_WOULD_BE_LATE = "WOULD_BE_LATE"  # the reason
_NOBODY_THERE = ": is the server running? (python -m server)"


def translate(call: grpc.Call) -> NiyamaError:
    """Returns the exception for a failed call. gRPC's errors, of both kinds, have the methods of a
    call.
    """
    code, message = call.code(), call.details() or call.code().name
    status = _status(call)
    info = _detail(status, error_details_pb2.ErrorInfo())
    retry = _detail(status, error_details_pb2.RetryInfo())
    retry_after = retry and float(retry.retry_delay.ToTimedelta().total_seconds())
    error = _error(code, message, info.reason if info else "", retry_after, status)
    error.code, error.retry_after = code, retry_after
    if info:
        error.reason, error.about = info.reason, dict(info.metadata)
    return error


def _error(
    code: grpc.StatusCode,
    message: str,
    reason: str,
    retry_after: float | None,
    status: status_pb2.Status | None,
) -> NiyamaError:
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        told = _detail(status, error_details_pb2.BadRequest())
        fields = told.field_violations if told else ()
        violations = tuple(Violation(each.field, each.description) for each in fields)
        return InvalidRequest(message, violations[0].field if violations else "", violations)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # The server's own refusal says when to try again. gRPC's refusal of a message that is
        # larger than either end takes does not, as it would come again.
        if retry_after is None and any(words in message for words in _TOO_LARGE):
            return InvalidRequest(message)
        return (WouldBeLate if reason == _WOULD_BE_LATE else QueueFull)(message, retry_after)
    if code is grpc.StatusCode.UNAVAILABLE and "Connection refused" in message:
        message += _NOBODY_THERE
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and _TOO_LATE in message:
        message = "the call was not over within its timeout"
    return _PLAIN.get(code, ServerError)(message)


def _status(call: grpc.Call) -> status_pb2.Status | None:
    """Returns the google.rpc.Status in the call's trailers, which has the details of its failure.
    Something on the way may have changed one and not the other; the call's own status then stands,
    without details.
    """
    try:
        return rpc_status.from_call(call)
    except (ValueError, DecodeError):
        return None


Detail = TypeVar("Detail", bound=Message)


def _detail(status: status_pb2.Status | None, detail: Detail) -> Detail | None:
    """Returns the detail, filled, if such a one stands in the status; else None."""
    found = status is not None and any(packed.Unpack(detail) for packed in status.details)
    return detail if found else None
