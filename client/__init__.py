"""Python client of the Niyama inference service: text generation with the latency you need.

AsyncClient and Client (client.client), streams of tokens (client.streams), the values that come
back (client.values), the arguments of a call (client.options), what can go wrong (client.errors).
"""

from client.client import AsyncClient, Client
from client.errors import (
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
)
from client.streams import AsyncStream, Stream
from client.values import FinishReason, Importance, Targets, Tokens

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
]
