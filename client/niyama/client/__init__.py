"""Python client of the Niyama inference service: text generation with the latency you need.

AsyncClient and Client (`client`), streams of tokens (`streams`), the values that come back
(`values`, `load`), the arguments of a call (`options`), what can go wrong (`errors`).
"""

from niyama.client.client import AsyncClient, Client
from niyama.client.errors import (
    AccessDenied,
    Cancelled,
    InvalidRequest,
    NiyamaError,
    NotFound,
    QueueFull,
    RequestIdInUse,
    ServerError,
    TimedOut,
    Unavailable,
    Violation,
    WouldBeLate,
)
from niyama.client.streams import AsyncStream, Stream
from niyama.client.values import FinishReason, Importance, Targets, Tokens

__all__ = [
    "AccessDenied",
    "AsyncClient",
    "AsyncStream",
    "Cancelled",
    "Client",
    "FinishReason",
    "Importance",
    "InvalidRequest",
    "NiyamaError",
    "NotFound",
    "QueueFull",
    "RequestIdInUse",
    "ServerError",
    "Stream",
    "Targets",
    "TimedOut",
    "Tokens",
    "Unavailable",
    "Violation",
    "WouldBeLate",
]
