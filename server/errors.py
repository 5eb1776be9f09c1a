"""How a call fails: the google.rpc.Status of every failure, with its details, in one place.

INVALID_ARGUMENT carries a BadRequest, RESOURCE_EXHAUSTED a RetryInfo, and every other status an
ErrorInfo whose reason a program can compare.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from engine.messages import Failure
from server.bounded import shorten
from server.violations import InvalidRequest, Violation

DOMAIN = "niyama.v1"
RETRY_AFTER_S = 1  # where nothing is known, and the least
MOST_RETRY_AFTER_S = 60  # by then the load is another
DETAILS_KEY = "grpc-status-details-bin"
MAX_MESSAGE_BYTES = 1024  # three times that percent-encoded, and beside it the details


class CallError(Exception):
    """A failure that ends a call with this status and this detail. `reason` says why it found no
    place, or lost it, where that is what has happened.
    """

    reason: Refusal | None = None

    def __init__(self, code: grpc.StatusCode, message: str, detail: Message) -> None:
        self.message = shorten(message, MAX_MESSAGE_BYTES)
        super().__init__(self.message)
        self.code = code
        self.detail = detail

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles the error with its detail, so that it crosses to another process whole."""
        return CallError, (self.code, self.message, self.detail)


class Refusal(Enum):
    """Why a call finds no place, as metrics and logs name it."""

    QUEUE_FULL = "queue_full"  # of requests
    WORK_FULL = "work_full"  # of tokens that wait
    SHARE_USED = "share_used"  # the tenant's
    TOO_MUCH = "too_much"  # is being read, of messages and prompts
    DISPLACED = "displaced"  # it had one, and gave it to more important work, or waited too long
    REJECTED = "rejected"  # by the policy: it could not be on time, or would wait too long
    DRAINING = "draining"  # the server ends


class Refused(CallError):
    """A call finds no place, or loses it. Its caller is told when to try again: after `retry_s` by
    the engine's forecast, in whole seconds from RETRY_AFTER_S to MOST_RETRY_AFTER_S.
    """

    reason: Refusal

    def __init__(self, reason: Refusal, message: str, retry_s: float = 0.0) -> None:
        bounded_s = max(RETRY_AFTER_S, min(MOST_RETRY_AFTER_S, retry_s))
        self.retry_after_s = math.ceil(bounded_s)
        retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=self.retry_after_s))
        super().__init__(grpc.StatusCode.RESOURCE_EXHAUSTED, message, retry)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return Refused, (self.reason, self.message, self.retry_after_s)


def rejected(why: str, retry_s: float) -> Refused:
    """The policy turns the request away when it comes."""
    return Refused(Refusal.REJECTED, f"rejected: {why}", retry_s)


def waited_too_long(why: str, retry_s: float) -> Refused:
    """The policy ends a request that waits, and has not been begun."""
    return Refused(Refusal.DISPLACED, f"waited too long: {why}", retry_s)


def invalid(error: InvalidRequest) -> CallError:
    """The request breaks rules of the API; the detail names its fields."""
    violations = [
        error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
        for v in error.violations
    ]
    detail = error_details_pb2.BadRequest(field_violations=violations)
    return CallError(grpc.StatusCode.INVALID_ARGUMENT, str(error), detail)


def too_much(what: str, share: int) -> Refused:
    """Too much is in hand of something that is limited beside the queue. `what` names it with its
    unit, and a tenant may hold `share` of it.
    """
    return Refused(
        Refusal.TOO_MUCH, f"too much is in hand: {what}, of which a tenant may hold {share}"
    )


def not_received(timeout_s: float) -> CallError:
    """The call's message did not come in time."""
    return cancelled(f"the message did not come within {timeout_s:g} s")


def too_slow(most: int) -> Refused:
    """The message comes slowly, while more than `most` messages are on their way."""
    return Refused(
        Refusal.TOO_MUCH, f"the message comes slowly, and more than {most} are on their way"
    )


def in_flight(request_id: str) -> CallError:
    """A request of that id is in flight."""
    message = f"request_id {request_id!r} is in flight"
    return _with_reason(grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_IN_FLIGHT", message)


def draining() -> CallError:
    """The server takes no new calls any more."""
    error = _with_reason(grpc.StatusCode.UNAVAILABLE, "DRAINING", "the server is draining")
    error.reason = Refusal.DRAINING
    return error


def engine_lost(message: str) -> CallError:
    """No engine serves now: the caller should try again."""
    return _with_reason(grpc.StatusCode.UNAVAILABLE, "ENGINE_LOST", message)


def unanswered(failure: Failure, message: str) -> CallError:
    """A question to the engine has no answer. The message of one that is invalid begins with the
    name of the field.
    """
    if failure is Failure.INVALID:
        field, _, rest = message.partition(" ")
        return invalid(InvalidRequest([Violation(field, rest)]))
    return _with_reason(grpc.StatusCode.NOT_FOUND, "UNKNOWN_REQUEST", message)


def not_remembered(request_id: str, tenant: str | None) -> CallError:
    """The engine remembers no such request of the tenant; None: of any, which only the operator may
    ask. A tenant does not learn whether another tenant has a request of that id.
    """
    whose = "of any tenant"
    if tenant is not None:
        whose = f"of tenant {tenant!r}" if tenant else "without a tenant"
    message = (
        f"no request {request_id!r} {whose} is remembered: it was never sent, has been forgotten,"
        " or came before the engine was started again"
    )
    if tenant is not None:
        message += "; another tenant's takes that tenant's name, or the operator's token"
    return unanswered(Failure.NOT_FOUND, message)


def unauthenticated() -> CallError:
    """The call shows a token that is not the operator's."""
    message = "the token in authorization is not the operator's"
    return _with_reason(grpc.StatusCode.UNAUTHENTICATED, "WRONG_TOKEN", message)


def not_local() -> CallError:
    """Where the operator has no token, only who is on this machine may ask about every tenant's
    requests.
    """
    message = (
        "only who is on this machine may ask about single requests; with --admin-token-file whoever"
        " shows the token"
    )
    return _with_reason(grpc.StatusCode.PERMISSION_DENIED, "NOT_LOCAL", message)


def engine_error(message: str) -> CallError:
    """The request failed by no fault of the caller's."""
    return _with_reason(grpc.StatusCode.INTERNAL, "ENGINE_ERROR", message)


def reader_lost() -> CallError:
    """The process that reads was lost at this message, twice, and nobody knows why."""
    return engine_error("the process that reads messages was lost while it read this one")


def reader_failed() -> CallError:
    """Reading the message failed by a mistake of ours."""
    return engine_error("the message could not be read, by a mistake of the server's")


def unreadable() -> CallError:
    """There is no process that could read the message, and none can be started."""
    message = "the process that reads messages cannot be started at the moment"
    return _with_reason(grpc.StatusCode.UNAVAILABLE, "READER_LOST", message)


def cancelled(message: str) -> CallError:
    """The call ends without a result, and its caller knows why or is gone."""
    return _with_reason(grpc.StatusCode.CANCELLED, "CANCELLED", message)


def _with_reason(code: grpc.StatusCode, reason: str, message: str) -> CallError:
    return CallError(code, message, error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: CallError) -> NoReturn:
    """Ends the call with the error's status and details, by raising what gRPC takes for that."""
    detail = AnyMessage()
    detail.Pack(error.detail)
    number = error.code.value[0]
    status = status_pb2.Status(code=number, message=error.message, details=[detail])
    await context.abort(error.code, error.message, ((DETAILS_KEY, status.SerializeToString()),))
