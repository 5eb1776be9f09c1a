"""What crosses the socket between a front end and a process that reads for it.

The front end sends a `Start`, then one `Job` after another. The process answers `Loaded`, then each
job with a `JobResult`. `engine.processes.frames` knows how messages become bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError, Message

from niyama.v1 import inference_pb2 as pb
from server.convert.input import Bounds
from server.violations import InvalidRequest, Violation

SHORT_BYTES = 32 << 10  # of a message that a front end parses itself: some milliseconds at worst
# Above what the process takes once it has loaded. A text takes about 150 times its size to encode.
MEMORY_BYTES = 512 << 20
MEMORY_PER_BYTE = 256
# Makes a message of `niyama.v1` of bytes, and raises InvalidRequest. It is pickled by its name.
Parse = Callable[[bytes], Any]


class Start(NamedTuple):
    """What the process needs to begin: the checkpoint's folder, and what one job may take."""

    model: Path
    cpu_s: float
    memory_bytes: int


class Task(Enum):
    """What is to be made of a message."""

    OUTLINE = "outline"  # the message without its input, which is checked
    ENCODE = "encode"  # the input's token ids
    COUNT = "count"  # the same, as the answer to CountTokens


class Job(NamedTuple):
    """One thing to do with the message that `parse` makes of `raw`. `bounds` hold for its input,
    and `field` is that input's path in the message, as far as it is known.
    """

    task: Task
    parse: Parse
    raw: bytes
    bounds: Bounds
    field: str = "input"


class Loaded(NamedTuple):
    """The process can read."""


class Outline(NamedTuple):
    """A message without its input, on the wire, and the name of its type. `field` is the path of
    that input; "" for a message that has none.
    """

    kind: str
    rest: bytes
    field: str


class Encoded(NamedTuple):
    """The token ids of an input."""

    ids: Sequence[int]


class Counted(NamedTuple):
    """A CountTokensResponse, on the wire."""

    response: bytes


class Broken(NamedTuple):
    """The job failed by a defect of ours; `trace` is its traceback."""

    trace: str


JobResult = Outline | Encoded | Counted | InvalidRequest | Broken


def parse(kind: type[Message], raw: bytes) -> Any:
    """Returns the message of that type. Raises InvalidRequest where the bytes are none."""
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        text = f"the message is no {kind.DESCRIPTOR.full_name}"
        raise InvalidRequest([Violation("", text)]) from error


def counted(ids: Sequence[int]) -> Counted:
    """Returns the answer to CountTokens for these token ids."""
    return Counted(pb.CountTokensResponse(count=len(ids), token_ids=ids).SerializeToString())


def took_too_long(field: str, cpu_s: float) -> InvalidRequest:
    """Returns the error of a field that takes too long to read."""
    return InvalidRequest([Violation(field, f"takes more than {cpu_s:g} s to read")])
