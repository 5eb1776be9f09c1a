"""What crosses Ray between its proxy and a replica: a call, and frames of its answer.

Ray carries messages and loses the rest: a status's details, trailing metadata, the caller's
deadline. So all of a call is in one value, and the last frame of its answer has all of its end.
Ray pickles both; they come from nobody but processes of the cluster.
"""

from __future__ import annotations

import pickle
from typing import NamedTuple

Metadata = tuple[tuple[str, str | bytes], ...]


class Call(NamedTuple):
    """A call as it came to the proxy. `timeout_s` is what is left to its deadline, None without
    one; `tried` are the replicas that have failed to serve it.
    """

    method: str  # "/niyama.v1.Inference/Generate"
    message: bytes
    metadata: Metadata
    timeout_s: float | None
    tried: frozenset[str] = frozenset()


class End(NamedTuple):
    """How a call ended: gRPC's number of the status, and what goes with it. `replica` served it."""

    code: int
    details: str
    trailing: Metadata
    replica: str


class Frame(NamedTuple):
    """The messages of an answer that have come since the frame before, and its end, if that has
    come too.
    """

    messages: tuple[bytes, ...]
    end: End | None = None

    def SerializeToString(self) -> bytes:
        """Returns the frame's bytes. The name is what Ray asks of an answer."""
        return pickle.dumps(tuple(self))

    @staticmethod
    def of(data: bytes) -> Frame:
        """Returns the frame that has those bytes."""
        messages, end = pickle.loads(data)
        return Frame(messages, end)
