"""What can go wrong with a call: a short tree of errors, made of gRPC's statuses in one place.

NiyamaError
├── InvalidRequest    the request cannot be served as it is (.field names the culprit), or it or its
│                     answer is larger than a message may be; a ValueError
├── RequestIdInUse    a request with that id is in flight
├── NotFound          nothing is known by that id
├── AccessDenied      no valid identity, or not allowed
├── QueueFull         the server refuses more work now (.retry_after: seconds, or None)
├── Unavailable       no server there, or it is starting, draining, or lost its engine
├── TimedOut          the call's own timeout passed; a TimeoutError
├── Cancelled         the call was cancelled, here or there
└── ServerError       anything else: a fault of the server
"""

from __future__ import annotations

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status


class NiyamaError(Exception):
    """Any failure of a call. `code` is the gRPC status it came from, where there was one."""

    code: grpc.StatusCode | None = None


class InvalidRequest(NiyamaError, ValueError):
    """The request cannot be served as it is. `field` is the path of the field that is at fault; ""
    means the whole message, when that is too large.
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


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
_NOBODY_THERE = ": is the server running? (python -m server)"


def translate(call: grpc.Call) -> NiyamaError:
    """Returns the exception for a failed call. gRPC's errors, of both kinds, have the methods of a
    call.
    """
    code, message = call.code(), call.details() or call.code().name
    error: NiyamaError
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        error = InvalidRequest(message, _violated_field(call))
    elif code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        error = _exhausted(call, message)
    else:
        if code is grpc.StatusCode.UNAVAILABLE and "Connection refused" in message:
            message += _NOBODY_THERE
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and _TOO_LATE in message:
            message = "the call was not over within its timeout"
        error = _PLAIN.get(code, ServerError)(message)
    error.code = code
    return error


def _exhausted(call: grpc.Call, message: str) -> NiyamaError:
    """Returns the exception for RESOURCE_EXHAUSTED. The server's own refusal says when to try
    again. gRPC's refusal of a message that is larger than either end takes does not, as it would
    come again.
    """
    retry_after = _retry_after(call)
    if retry_after is None and any(words in message for words in _TOO_LARGE):
        return InvalidRequest(message)
    return QueueFull(message, retry_after)


def _violated_field(call: grpc.Call) -> str:
    bad_request = error_details_pb2.BadRequest()
    if _unpack_detail(call, bad_request) and bad_request.field_violations:
        return str(bad_request.field_violations[0].field)
    return ""


def _retry_after(call: grpc.Call) -> float | None:
    retry = error_details_pb2.RetryInfo()
    if _unpack_detail(call, retry):
        return float(retry.retry_delay.ToTimedelta().total_seconds())
    return None


def _unpack_detail(
    call: grpc.Call, detail: error_details_pb2.BadRequest | error_details_pb2.RetryInfo
) -> bool:
    """Fills `detail` from the google.rpc.Status in the call's trailers. Returns whether it stands
    there.
    """
    status = rpc_status.from_call(call)
    return status is not None and any(packed.Unpack(detail) for packed in status.details)
