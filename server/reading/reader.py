"""The process that reads what is too much for an event loop.

It parses messages of megabytes, renders conversations by the checkpoint's template and tokenizes
long texts. Each job is limited in time and memory (`server.reading.limits`), and whatever goes
wrong with a job is the answer to that job alone. It runs as `python -m server.reading.reader FD
PULSE`, where FD is its end of a socket pair. First comes a `Start`, then one `Job` after another,
each answered before the next is sent. It ends when the other end closes, even in the midst of work.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import traceback
from typing import Any

from google.protobuf.message import Message

from engine.checkpoint.tokenizer import Tokenizer
from engine.processes import standard_streams
from engine.processes.frames import receive, send
from engine.processes.spawn import leave_signals, parent_of
from server.convert.inbound import check_stops
from server.convert.input import Bounds, read_form, read_input
from server.reading.encoder import Encoder
from server.reading.limits import CpuLimit, TooLong, give_back_memory, limit_memory
from server.reading.messages import (
    SHORT_BYTES,
    Broken,
    Encoded,
    Job,
    JobResult,
    Loaded,
    Outline,
    Start,
    Task,
    counted,
    took_too_long,
)
from server.violations import InvalidRequest, Violation, Violations


class Reader:
    """Does one job after another, with one tokenizer and one limit of CPU time."""

    def __init__(self, tokenizer: Tokenizer, limit: CpuLimit) -> None:
        self._encoder = Encoder(tokenizer)
        self._limit = limit
        self._field = ""  # what is being read

    def answer(self, job: Job) -> JobResult:
        """Returns the job's result, whatever goes wrong with it."""
        self._field = job.field
        try:
            with self._limit.work():
                return self._do(job)
        except InvalidRequest as error:
            return error
        except TooLong:
            return took_too_long(self._field, self._limit.cpu_s)
        except MemoryError:
            return InvalidRequest([Violation(self._field, "takes too much memory to read")])
        except Exception:
            return Broken(traceback.format_exc())

    def _do(self, job: Job) -> JobResult:
        message = job.parse(job.raw)
        if job.task is Task.OUTLINE:
            return outline(message, job.bounds)
        self._field = f"input.{message.input.WhichOneof('form')}"
        prompt = read_input(message.input, job.bounds)
        ids = self._encoder.encode(prompt, job.bounds)
        if job.task is Task.ENCODE:
            return Encoded(ids)
        return counted(ids)


def outline(message: Any, bounds: Bounds) -> Outline:
    """Returns the message without its input and without fields that we do not know.

    Raises InvalidRequest for an input that is no good, and for a rest that is not short.
    """
    found, field, size = Violations(), "", message.ByteSize()
    if "input" in message.DESCRIPTOR.fields_by_name:
        field = read_form(found, message.input, bounds).field
        size -= message.input.ByteSize()
        message.ClearField("input")
    if "sampling" in message.DESCRIPTOR.fields_by_name:
        check_stops(found, message.sampling, bounds.vocab_size)
    if not found and size > SHORT_BYTES:
        text = f"too long: the message has {size} bytes beside its input, {SHORT_BYTES} are read"
        found.refuse(_largest_field(message), text)
    found.finish()
    message.DiscardUnknownFields()
    return Outline(message.DESCRIPTOR.name, message.SerializeToString(), field)


def _largest_field(message: Any) -> str:
    """Returns the path of the largest field; "" where there is none that we know."""
    sizes = {}
    for field, value in message.ListFields():
        if field.message_type is not None and not field.is_repeated:
            sizes[field.name] = value.ByteSize()
        elif hasattr(value, "__len__"):
            sizes[field.name] = len(value)
    if not sizes:
        return ""
    name = max(sizes, key=sizes.__getitem__)
    value = getattr(message, name)
    inner = _largest_field(value) if isinstance(value, Message) else ""
    return f"{name}.{inner}" if inner else name


def serve(sock: socket.socket) -> None:
    """Answers jobs until the other end is closed, which raises EOFError."""
    start: Start = receive(sock)
    reader = Reader(Tokenizer.load(start.model), CpuLimit(start.cpu_s))
    limit_memory(start.memory_bytes)
    send(sock, Loaded())
    while True:
        jobs: list[Job] = receive(sock)
        while jobs:
            job = jobs.pop(0)
            send(sock, reader.answer(job))
            is_long = len(job.raw) > SHORT_BYTES
            del job  # its memory is given back too
            if is_long:
                give_back_memory()


def leave_with(sock: socket.socket) -> None:
    """Ends this process as soon as the socket's other end is closed. For a thread of its own."""
    poll = select.poll()
    poll.register(sock, 0)  # its end is told in any case
    poll.poll()
    os._exit(0)


def main(argv: list[str]) -> int:
    """Runs the process and returns its exit code."""
    leave_signals()
    standard_streams.guard()
    (sock,), pulse = parent_of(argv[1:])
    pulse.close()  # each piece of work has a limit, which its parent minds
    with sock:
        threading.Thread(target=leave_with, args=(sock,), daemon=True).start()
        try:
            serve(sock)
        except EOFError:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
