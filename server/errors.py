"""How a call fails: the google.rpc.Status of every failure, with its details, in one place.

Every status carries an ErrorInfo: a reason that a program can compare and that never changes its
meaning, and what it was about, by name. INVALID_ARGUMENT carries a BadRequest before that, and
RESOURCE_EXHAUSTED a RetryInfo, whose delay stands in `grpc-retry-pushback-ms` too, where gRPC's own
clients look (gRPC's proposal A6). docs/errors.md has a row for every reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final, NoReturn
from zlib import crc32

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from engine.messages import Failure
from engine.rights import Claim, NotAllowed
from server.bounded import shorten
from server.violations import InvalidRequest, Violation

DOMAIN = "niyama.v1"
RETRY_AFTER_S = 1.0  # where nothing is known, and the least
MOST_RETRY_AFTER_S = 60.0  # by then the load is another
SPREAD = 0.5  # by so much at most is a delay made longer, so that not all come back at once
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
NO_RETRY = "-1"  # by A6: the call is not tried again by gRPC itself
# Where a request states what its tenant may not have.
_FIELDS = {
    Claim.TIER: "qos.tier",
    Claim.TARGETS: "qos.targets",
    Claim.IMPORTANCE: "qos.importance",
}
MAX_MESSAGE_BYTES = 1024  # three times that percent-encoded, and beside it the details
MAX_VALUE_BYTES = 128  # of what an ErrorInfo says, each


class Refusal(Enum):
    """Why a call finds no place, as metrics and logs have it; its name is the reason it is told."""

    QUEUE_FULL = "queue_full"  # of requests
    WORK_FULL = "work_full"  # of tokens that wait
    SHARE_USED = "share_used"  # the tenant's
    TENANT_LIMIT = "tenant_limit"  # it has as much as the operator allows it at once
    TOO_MUCH = "too_much"  # is being read, of messages and prompts
    DISPLACED = "displaced"  # it had one, and gave it to more important work
    WAITED_TOO_LONG = "waited_too_long"  # it had one, and was ended by the policy
    REJECTED = "rejected"  # by the policy: it could not be on time, or would wait too long
    WOULD_BE_LATE = "would_be_late"  # by the forecast, and it asked to be refused then
    DRAINING = "draining"  # the server ends


# The status of each reason that an ErrorInfo may have.
CODES: Final[Mapping[str, StatusCode]] = {
    **{each.name: StatusCode.RESOURCE_EXHAUSTED for each in Refusal},
    "DRAINING": StatusCode.UNAVAILABLE,
    "INVALID_REQUEST": StatusCode.INVALID_ARGUMENT,
    "NO_MESSAGE": StatusCode.INVALID_ARGUMENT,
    "NOT_RECEIVED": StatusCode.CANCELLED,
    "CANCELLED": StatusCode.CANCELLED,
    "REQUEST_ID_IN_FLIGHT": StatusCode.ALREADY_EXISTS,
    "UNKNOWN_REQUEST": StatusCode.NOT_FOUND,
    "UNKNOWN_SERVICE": StatusCode.NOT_FOUND,
    "NO_TOKENIZER": StatusCode.FAILED_PRECONDITION,
    "WRONG_TOKEN": StatusCode.UNAUTHENTICATED,
    "UNAUTHENTICATED": StatusCode.UNAUTHENTICATED,
    "TENANT_NOT_ALLOWED": StatusCode.PERMISSION_DENIED,
    "TIER_NOT_ALLOWED": StatusCode.PERMISSION_DENIED,
    "TARGETS_NOT_ALLOWED": StatusCode.PERMISSION_DENIED,
    "IMPORTANCE_NOT_ALLOWED": StatusCode.PERMISSION_DENIED,
    "NOT_FOR_TENANTS": StatusCode.PERMISSION_DENIED,
    "NOT_LOCAL": StatusCode.PERMISSION_DENIED,
    "ENGINE_LOST": StatusCode.UNAVAILABLE,
    "READER_LOST": StatusCode.UNAVAILABLE,
    "ENGINE_ERROR": StatusCode.INTERNAL,
    "READER_ERROR": StatusCode.INTERNAL,
    "INTERNAL_ERROR": StatusCode.INTERNAL,
}


class CallError(Exception):
    """A failure that ends a call with the status of `reason`, which is one of CODES. `about` says
    what it was about, by name, and `details` go before the ErrorInfo.
    """

    refusal: Refusal | None = None  # why it found no place, or lost it, where that has happened

    def __init__(
        self,
        reason: str,
        message: str,
        about: Mapping[str, str] | None = None,
        details: tuple[Message, ...] = (),
    ) -> None:
        self.reason, self.code = reason, CODES[reason]
        self.message = shorten(message, MAX_MESSAGE_BYTES)
        super().__init__(self.message)
        self.about = {k: shorten(v, MAX_VALUE_BYTES) for k, v in (about or {}).items()}
        self.details = details

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles the error with its details, so that it crosses to another process whole."""
        return CallError, (self.reason, self.message, self.about, self.details)


class Refused(CallError):
    """A call finds no place, or loses it. Its caller is told when to try again: after
    `retry_after_s`, by what is predicted from RETRY_AFTER_S on.

    `is_final` says that by the caller's own clock no later try of this very call can help, so that
    gRPC is not to make one behind the caller's back.
    """

    refusal: Refusal

    def __init__(
        self,
        refusal: Refusal,
        message: str,
        retry_s: float = 0.0,
        about: Mapping[str, str] | None = None,
        is_final: bool = False,
    ) -> None:
        super().__init__(refusal.name, message, about)
        self.refusal = refusal
        self.is_final = is_final
        most_s = MOST_RETRY_AFTER_S / (1 + SPREAD)
        # Not a number compares with nothing, and so is the least.
        self.retry_after_s = max(RETRY_AFTER_S, min(retry_s, most_s))

    def __reduce__(self) -> tuple[object, ...]:
        rest = self.retry_after_s, self.about, self.is_final
        return Refused, (self.refusal, self.message, *rest)


def spread(delay_s: float, key: str) -> float:
    """Returns the delay, in whole milliseconds, made longer by up to SPREAD of itself, by as much
    as `key`, the name of the call, has it: the same for the same call, and evenly for many. Those
    who are refused at once, and would all come back at once, do not.
    """
    share = crc32(key.encode()) / 2**32
    return math.floor(1000 * delay_s * (1 + SPREAD * share)) / 1000


def rejected(why: str, retry_s: float) -> Refused:
    """The policy turns the request away when it comes."""
    return Refused(Refusal.REJECTED, f"rejected: {why}", retry_s)


def would_be_late(why: str, retry_s: float, expected: tuple[float, float]) -> Refused:
    """The request would miss a target by its forecast, and asked to be refused then. `expected` are
    the times to its first and to its last token. It is the caller's to ask again, and elsewhere: by
    the caller's own clock it would only be later.
    """
    ttft_ms, ttlt_ms = (str(round(1000 * seconds)) for seconds in expected)
    about = {"expected_ttft_ms": ttft_ms, "expected_ttlt_ms": ttlt_ms}
    message = f"it would be late: {why}"
    return Refused(Refusal.WOULD_BE_LATE, message, retry_s, about, is_final=True)


def waited_too_long(why: str, retry_s: float) -> Refused:
    """The policy ends a request that waits, and has not been begun."""
    return Refused(Refusal.WAITED_TOO_LONG, f"waited too long: {why}", retry_s)


def invalid(error: InvalidRequest) -> CallError:
    """The request breaks rules of the API; the details name its fields."""
    violations = [
        error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
        for v in error.violations
    ]
    details = (error_details_pb2.BadRequest(field_violations=violations),)
    about = {"field": error.violations[0].field} if error.violations else None
    return CallError("INVALID_REQUEST", str(error), about, details)


def too_much(what: str, share: int) -> Refused:
    """Too much is in hand of something that is limited beside the queue. `what` names it with its
    unit, and a tenant may hold `share` of it.
    """
    message = f"too much is in hand: {what}, of which a tenant may hold {share}"
    return Refused(Refusal.TOO_MUCH, message, about={"what": what, "limit": str(share)})


def too_slow(most: int) -> Refused:
    """The message comes slowly, while more than `most` messages are on their way."""
    message = f"the message comes slowly, and more than {most} are on their way"
    about = {"what": "messages on their way", "limit": str(most)}
    return Refused(Refusal.TOO_MUCH, message, about=about)


def too_many_watches(most: int) -> Refused:
    """More than `most` watch health, and the call's connection has the most of these."""
    message = f"more than {most} watch health, and this connection has the most of them"
    about = {"what": "watches of health", "limit": str(most)}
    return Refused(Refusal.TOO_MUCH, message, about=about)


def not_received(timeout_s: float) -> CallError:
    """The call's message did not come in time."""
    return CallError("NOT_RECEIVED", f"the message did not come within {timeout_s:g} s")


def no_message() -> CallError:
    """The call ended before its message had come whole."""
    return CallError("NO_MESSAGE", "the call ended before its message had come")


def in_flight(request_id: str) -> CallError:
    """A request of that id is in flight."""
    message = f"request_id {request_id!r} is in flight"
    return CallError("REQUEST_ID_IN_FLIGHT", message, {"request_id": request_id})


def draining() -> CallError:
    """The server takes no new calls any more."""
    error = CallError("DRAINING", "the server is draining")
    error.refusal = Refusal.DRAINING
    return error


def engine_lost(message: str) -> CallError:
    """No engine serves now: the caller should try again."""
    return CallError("ENGINE_LOST", message)


def unanswered(failure: Failure, message: str) -> CallError:
    """A question to the engine has no answer. The message of one that is invalid begins with the
    name of the field.
    """
    if failure is Failure.INVALID:
        field, _, rest = message.partition(" ")
        return invalid(InvalidRequest([Violation(field, rest)]))
    return CallError("UNKNOWN_REQUEST", message)


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
    return CallError("UNKNOWN_REQUEST", message, {"request_id": request_id})


def unknown_service(name: str) -> CallError:
    """Somebody asks for the health of a service that is not served here."""
    return CallError("UNKNOWN_SERVICE", "no such service", {"service": name})


def no_tokenizer() -> CallError:
    """A gateway asks for the tokenizer, and there is no file that would say to it the same."""
    return CallError("NO_TOKENIZER", "the model's tokenizer has no form that a gateway reads")


def wrong_token() -> CallError:
    """The call shows a token that is not the operator's."""
    return CallError("WRONG_TOKEN", "the token in authorization is not the operator's")


def unauthenticated() -> CallError:
    """Nobody knows who makes the call. It is not told why: whether there is such a token, or such a
    tenant, is no stranger's business.
    """
    return CallError(
        "UNAUTHENTICATED",
        "who calls is not known: show a token as `authorization: Bearer TOKEN`, or a certificate",
    )


def not_yours() -> CallError:
    """The call names a tenant for which its caller may not speak, whether or not there is one."""
    message = "niyama-tenant names another tenant than the caller's, who speaks for none but itself"
    return CallError("TENANT_NOT_ALLOWED", message)


def not_allowed(error: NotAllowed) -> CallError:
    """The request states what its tenant may not have."""
    reason, field = f"{error.claim.name}_NOT_ALLOWED", _FIELDS[error.claim]
    return CallError(reason, f"{field}: {error}", {"field": field})


def not_for_tenants() -> CallError:
    """The call asks what is told to the operator, or to who speaks for others, such as a gateway:
    how loaded the server is, or who is connected.
    """
    message = "a tenant is not told of all the others: Estimate and Explain tell of its own"
    return CallError("NOT_FOR_TENANTS", message)


def not_local() -> CallError:
    """Where the operator has no token, only who is on this machine may ask about every tenant's
    requests and connections.
    """
    message = (
        "only who is on this machine may ask about single requests or connections; with"
        " --admin-token-file whoever shows the token"
    )
    return CallError("NOT_LOCAL", message)


def engine_error(message: str) -> CallError:
    """The request failed by no fault of the caller's."""
    return CallError("ENGINE_ERROR", message)


def internal(error_id: str) -> CallError:
    """A defect of ours, which the log tells by that id. Its caller learns nothing of it."""
    message = f"a defect of the server's: its log tells it by error_id {error_id}"
    return CallError("INTERNAL_ERROR", message, {"error_id": error_id})


def reader_error() -> CallError:
    """The process that reads was lost at this message, twice, and nobody knows why."""
    message = "the process that reads messages was lost while it read this one"
    return CallError("READER_ERROR", message)


def reader_lost() -> CallError:
    """There is no process that could read the message, and none can be started."""
    message = "the process that reads messages cannot be started at the moment"
    return CallError("READER_LOST", message)


def cancelled(message: str) -> CallError:
    """The call ends without a result, and its caller knows why or is gone."""
    return CallError("CANCELLED", message)


def trailers(error: CallError, key: str, left_s: float | None) -> tuple[tuple[str, Any], ...]:
    """Returns the trailing metadata of a call that ends with the error, `left_s` before its
    deadline, if it has one. `key` says how a delay is spread.

    gRPC's own clients wait for a pushback though their deadline passes meanwhile, and are not told
    then why they were refused. So they are told not to where it would.
    """
    details, pushback = error.details, ""
    if isinstance(error, Refused):
        delay_s = spread(error.retry_after_s, key)
        delay = Duration()
        delay.FromMilliseconds(round(1000 * delay_s))
        details = (*details, error_details_pb2.RetryInfo(retry_delay=delay))
        is_final = error.is_final or (left_s is not None and left_s <= delay_s)
        pushback = NO_RETRY if is_final else str(round(1000 * delay_s))
    why = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.about)
    status = status_pb2.Status(code=error.code.value[0], message=error.message)
    for detail in (*details, why):
        status.details.add().Pack(detail)
    told = ((DETAILS_KEY, status.SerializeToString()),)
    return (*told, (PUSHBACK_KEY, pushback)) if pushback else told


async def abort(
    context: grpc.aio.ServicerContext[Any, Any], error: CallError, key: str = ""
) -> NoReturn:
    """Ends the call, which `key` tells from others, with the error's status and details, by raising
    what gRPC takes for that.
    """
    told = trailers(error, key or context.peer(), context.time_remaining())
    await context.abort(error.code, error.message, told)
