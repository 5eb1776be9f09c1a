"""The engine's end of several front ends, which its loop takes for one.

Who started the engine holds the first connection, and ends it by closing that; the others arrive
through a door (a socket over which file descriptors are sent) and come and go. A request belongs to
the connection that it came by: its events go there and nowhere else, and when that connection ends,
so does the request. An id that is in flight is refused, unless its request was cancelled: then who
submits it again waits for the `Finished`. Nobody waits for a front end that has stopped reading: it
is cut off. The first connection alone is waited for, as where there is only one.
"""

from __future__ import annotations

import select
import socket
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from engine.deciding.sequence import FinishReason
from engine.messages import Ask, Cancel, Command, EngineInfo, Ready, Report, Submit
from engine.processes.frames import Unpacker, pack

_READ_BYTES = 1 << 18
MOST_UNREAD_BYTES = 64 << 20  # that a front end may leave before it is cut off


class Connection:
    """One front end: a socket, and what was not sent because it would have blocked."""

    def __init__(self, sock: socket.socket, blocks: bool = False) -> None:
        sock.setblocking(blocks)
        self.socket = sock
        self.unread = bytearray()
        self.is_open = True
        self._unpacker = Unpacker()

    def receive(self) -> list[Command]:
        """What has come. Raises EOFError when the other end is gone."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError
        return [command for batch in self._unpacker.feed(data) for command in batch]

    def send(self, message: object) -> None:
        """Raises EOFError when the other end is gone or has left too much unread."""
        self.unread += pack(message)
        self.flush()
        if len(self.unread) > MOST_UNREAD_BYTES:
            raise EOFError

    def flush(self) -> None:
        try:
            while self.unread:
                del self.unread[: self.socket.send(self.unread)]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            raise EOFError from None


class Waiting(NamedTuple):
    """Who has submitted an id that is about to be free, and all that it said of it since."""

    connection: Connection
    commands: list[Command]


class Hub:
    """A `loop.Pipe`. EOFError means that who started the engine is gone."""

    def __init__(self, first: socket.socket, door: socket.socket, info: EngineInfo) -> None:
        self._info = info
        self._door = door
        self._first = Connection(first, blocks=True)
        self._connections = {first.fileno(): self._first}
        self._owners: dict[str, Connection] = {}  # of the requests in flight, by id
        self._questions: dict[int, tuple[Connection, int]] = {}  # ours to theirs
        self._num_questions = 0
        self._ending: set[str] = set()  # of the requests in flight, those that were cancelled
        self._waiting: dict[str, Waiting] = {}
        self._refused: list[tuple[Connection, str]] = []  # not yet told
        # Cancellations of those whose front end left, and what has waited long enough.
        self._due: list[Command] = []
        self._poll = select.poll()
        self._poll.register(door, select.POLLIN)
        self._poll.register(first, select.POLLIN)

    @property
    def connections(self) -> list[Connection]:
        """The open ones, the first included."""
        return list(self._connections.values())

    def receive(self, timeout_s: float | None) -> list[Command]:
        """The commands posted so far; waits up to `timeout_s` (None: for ever) for the first."""
        commands, self._due = self._due, []
        timeout_ms = 0.0 if commands else None if timeout_s is None else timeout_s * 1000
        while ready := self._poll.poll(timeout_ms):
            for fd, events in ready:
                if fd == self._door.fileno():
                    self._admit()
                elif fd in self._connections:
                    commands += self._read(self._connections[fd], events)
            self._refuse()
            commands += self._due
            self._due = []
            if commands:
                timeout_ms = 0
        return commands

    def send(self, report: Report) -> None:
        """To each front end what concerns it; a sign of life and a line for the log where due."""
        if not report:
            self._post(dict.fromkeys(self._connections.values(), report))
            return
        parts: defaultdict[Connection, Report] = defaultdict(Report)
        owners = self._owners
        for event in report.news:
            parts[owners[event.request_id]].news.append(event)
        for sampled in report.sampled:
            parts[owners[sampled[0]]].sampled.append(sampled)
        for finished in report.finished:
            parts[self._release(finished.request_id)].finished.append(finished)
        for reply in report.replies:
            connection, question_id = self._questions.pop(reply.question_id)
            parts[connection].replies.append(reply._replace(question_id=question_id))
        if report.notices:
            parts[self._first].notices += report.notices
        if report.learnt:
            parts[self._first].learnt = report.learnt
        self._post(parts)

    def _post(self, parts: dict[Connection, Report]) -> None:
        for connection, part in parts.items():
            self._send(connection, part)

    def _send(self, connection: Connection, message: object) -> None:
        if not connection.is_open:
            return
        try:
            connection.send(message)
        except EOFError:
            self._leave(connection)
        else:
            if connection.unread:
                self._poll.modify(connection.socket, select.POLLIN | select.POLLOUT)

    def _read(self, connection: Connection, events: int) -> Iterable[Command]:
        try:
            if events & select.POLLOUT:
                connection.flush()
                if not connection.unread:
                    self._poll.modify(connection.socket, select.POLLIN)
            if not events & ~select.POLLOUT:
                return []
            received = connection.receive()
        except EOFError:
            self._leave(connection)
            return []
        return self._routed(connection, received)

    def _routed(self, connection: Connection, commands: Iterable[Command]) -> list[Command]:
        routed = [self._route(connection, command) for command in commands]
        return [command for command in routed if command is not None]

    def _route(self, connection: Connection, command: Any) -> Command | None:
        """The command as the loop is to see it; None for one that is not to be carried out."""
        if isinstance(command, Ask):
            self._num_questions += 1
            self._questions[self._num_questions] = connection, command.question_id
            return command._replace(question_id=self._num_questions)
        if isinstance(command, Cancel):
            return self._route_cancel(connection, command)
        assert isinstance(command, Submit)
        request_id = command.request.id
        if request_id not in self._owners:
            self._owners[request_id] = connection
            return command
        if request_id in self._waiting:
            self._refused.append((connection, request_id))
        else:
            self._waiting[request_id] = Waiting(connection, [command])
        return None

    def _route_cancel(self, connection: Connection, cancel: Cancel) -> Command | None:
        if self._owners.get(cancel.request_id) is connection:
            self._ending.add(cancel.request_id)
            return cancel
        waiting = self._waiting.get(cancel.request_id)
        if waiting is not None and waiting.connection is connection:
            waiting.commands.append(cancel)
        return None

    def _refuse(self) -> None:
        """Whoever waits for an id that is not about to be free. Not before all that had come was
        read: the cancellation, or the end, of the request before may be in another socket.
        """
        for request_id in self._waiting.keys() - self._ending:
            self._refused.append((self._waiting.pop(request_id).connection, request_id))
        refused, self._refused = self._refused, []
        for connection, request_id in refused:
            self._send(connection, Report(refused=[request_id]))

    def _release(self, request_id: str) -> Connection:
        """Returns who owned it. Who has waited for the id is next."""
        owner = self._owners.pop(request_id)
        self._ending.discard(request_id)
        waiting = self._waiting.pop(request_id, None)
        if waiting is not None:
            self._due += self._routed(*waiting)
        return owner

    def _admit(self) -> None:
        """A new front end has been handed in; it is told at once that the engine can serve."""
        data, fds, _, _ = socket.recv_fds(self._door, 1, 1)
        if not data:  # the first connection says so too
            self._poll.unregister(self._door)
            return
        for fd in fds:
            connection = Connection(socket.socket(fileno=fd))
            self._connections[fd] = connection
            self._poll.register(fd, select.POLLIN)
            self._send(connection, Ready(self._info))

    def _leave(self, connection: Connection) -> None:
        """Ends what the engine is at work on for it."""
        if connection is self._first:
            raise EOFError("who started the engine is gone")
        self._poll.unregister(connection.socket)
        del self._connections[connection.socket.fileno()]
        connection.is_open = False
        connection.socket.close()
        for request_id, waiting in list(self._waiting.items()):
            if waiting.connection is connection:
                del self._waiting[request_id]
        lost = [request_id for request_id, owner in self._owners.items() if owner is connection]
        self._ending.update(lost)
        self._due += [Cancel(request_id, FinishReason.CANCELLED) for request_id in lost]
