"""The engine's connections to front ends, which its loop takes for one pipe.

Who started the engine holds the first connection, and ends the engine by closing it: a server's
only front end, or the supervisor of several. Others are handed in through a door, and come and
go. A request belongs to the connection that it came by: its events go there and nowhere else, and
when that connection ends, so does the request.

An id that is in flight is refused, unless its request was cancelled: then who submits it again
waits for the `Finished`. Nobody waits for a front end that has stopped reading: it is cut off. The
first connection alone is waited for, as nothing can be done without it.
"""

from __future__ import annotations

import select
import socket
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from engine.deciding.sequence import FinishReason
from engine.messages import Ask, Cancel, Command, Describe, EngineInfo, Ready, Report, Tell, Watch
from engine.processes.door import let_in
from engine.processes.frames import Unpacker, pack

_READ_BYTES = 1 << 18
MOST_UNREAD_BYTES = 64 << 20  # that a front end may leave before it is cut off


class Connection:
    """A connection is the socket to one front end, and what could not be sent there without waiting
    (`unread`). Every method raises EOFError when the other end is gone.
    """

    def __init__(self, sock: socket.socket, blocks: bool = False) -> None:
        sock.setblocking(blocks)
        self.socket = sock
        self.unread = bytearray()
        self.is_open = True
        self._unpacker = Unpacker()

    def receive(self) -> list[Command]:
        """Returns the commands that have come whole."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError
        return [command for batch in self._unpacker.feed(data) for command in batch]

    def send(self, message: Ready | Report) -> None:
        """Sends the message behind what is unread, as far as the socket takes it now."""
        self.unread += pack(message)
        self.flush()

    def flush(self) -> None:
        """Sends what is unread, as far as the socket takes it now."""
        try:
            while self.unread:
                del self.unread[: self.socket.send(self.unread)]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            raise EOFError from None


class Successor(NamedTuple):
    """The front end that is to have an id next, which it has submitted and which is about to be
    free. `commands` are all that it has said of the id since.
    """

    connection: Connection
    commands: list[Command]


class Connections:
    """The connections are a `loop.Pipe`. EOFError says that who started the engine is gone."""

    def __init__(
        self,
        first: socket.socket,
        door: socket.socket,
        info: EngineInfo,
        most_unread_bytes: int = MOST_UNREAD_BYTES,
    ) -> None:
        """Every front end that comes through the door is told `info`."""
        self._info = info
        self._door = door
        self._most_unread_bytes = most_unread_bytes
        self._first = Connection(first, blocks=True)
        self._open = {first.fileno(): self._first}
        self._in_flight: dict[str, Connection] = {}  # by the request's id: whose it is
        self._num_held: Counter[Connection] = Counter()  # of the requests in flight, if any
        self._ending: set[str] = set()  # of the requests in flight, those that were cancelled
        self._successors: dict[str, Successor] = {}
        self._questions: dict[int, tuple[Connection, int]] = {}  # our number: who asked under which
        self._num_questions = 0
        self._watching: set[Connection] = set()  # the prefix cache
        self._refused: list[tuple[Connection, str]] = []  # not yet told
        # Cancellations of those whose front end left, and what has waited long enough.
        self._due: list[Command] = []
        self._poll = select.poll()
        self._poll.register(door, select.POLLIN)
        self._poll.register(first, select.POLLIN)

    def __len__(self) -> int:
        """Counts those that are open, the first included."""
        return len(self._open)

    def receive(self, timeout_s: float | None) -> list[Command]:
        """Returns the commands posted so far; waits up to `timeout_s` (None: for ever) for one."""
        commands, self._due = self._due, []
        timeout_ms = 0.0 if commands else None if timeout_s is None else timeout_s * 1000
        while ready := self._poll.poll(timeout_ms):
            for fd, events in ready:
                if fd == self._door.fileno():
                    self._let_in()
                elif fd in self._open:
                    commands += self._read(self._open[fd], events)
            self._refuse()
            commands += self._due
            self._due = []
            if commands:
                timeout_ms = 0
        return commands

    def send(self, report: Report) -> None:
        """Sends each front end what concerns it, everybody a sign of life, and who started the
        engine what its log and the next engine should have.
        """
        if not report:
            for connection in list(self._open.values()):
                self._send(connection, report)
            return
        parts: defaultdict[Connection, Report] = defaultdict(Report)
        in_flight = self._in_flight
        if len(self._num_held) == 1:  # a front end that is alone, or the only one at work
            (whose,) = self._num_held
            parts[whose].news, parts[whose].sampled = report.news, report.sampled
        else:
            for event in report.news:
                parts[in_flight[event.request_id]].news.append(event)
            for sampled in report.sampled:
                parts[in_flight[sampled[0]]].sampled.append(sampled)
        for finished in report.finished:
            parts[self._release(finished.request_id)].finished.append(finished)
        for reply in report.replies:
            connection, question_id = self._questions.pop(reply.question_id)
            parts[connection].replies.append(reply._replace(question_id=question_id))
        if report.notices:
            parts[self._first].notices += report.notices
        if report.learnt:
            parts[self._first].learnt = report.learnt
        if report.cache is not None:
            for connection in self._watching:
                parts[connection].cache = report.cache
        for connection, part in parts.items():
            self._send(connection, part)

    def close(self) -> None:
        """Closes every connection and the door."""
        for connection in self._open.values():
            connection.socket.close()
        self._door.close()

    def _send(self, connection: Connection, message: Ready | Report) -> None:
        if not connection.is_open:
            return
        try:
            connection.send(message)
        except EOFError:
            self._leave(connection)
            return
        if len(connection.unread) > self._most_unread_bytes:
            self._leave(connection)
        elif connection.unread:
            self._poll.modify(connection.socket, select.POLLIN | select.POLLOUT)

    def _read(self, connection: Connection, events: int) -> list[Command]:
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

    def _route(self, connection: Connection, command: Command) -> Command | None:
        """Returns the command as the loop is to see it; None for one that is not carried out."""
        if isinstance(command, Ask):
            self._num_questions += 1
            self._questions[self._num_questions] = connection, command.question_id
            return command._replace(question_id=self._num_questions)
        if isinstance(command, Cancel):
            return self._route_cancel(connection, command)
        if isinstance(command, Watch):
            return self._watch(connection, command.is_on)
        if isinstance(command, Describe | Tell):
            return command
        request_id = command.request.id
        if request_id not in self._in_flight:
            self._in_flight[request_id] = connection
            self._num_held[connection] += 1
            return command
        if request_id in self._successors:
            self._refused.append((connection, request_id))
        else:
            self._successors[request_id] = Successor(connection, [command])
        return None

    def _watch(self, connection: Connection, is_on: bool) -> Watch | None:
        """Returns what the loop is to be told: whether anybody watches, if that has changed."""
        before = bool(self._watching)
        if is_on:
            self._watching.add(connection)
        else:
            self._watching.discard(connection)
        return Watch(is_on) if bool(self._watching) != before else None

    def _route_cancel(self, connection: Connection, cancel: Cancel) -> Command | None:
        if self._in_flight.get(cancel.request_id) is connection:
            self._ending.add(cancel.request_id)
            return cancel
        successor = self._successors.get(cancel.request_id)
        if successor is not None and successor.connection is connection:
            successor.commands.append(cancel)
        return None

    def _refuse(self) -> None:
        """Refuses whoever waits for an id that is not about to be free. Not before all that had
        come was read: the cancellation, or the end, of the request before may be in another socket.
        """
        for request_id in self._successors.keys() - self._ending:
            self._refused.append((self._successors.pop(request_id).connection, request_id))
        refused, self._refused = self._refused, []
        for connection, request_id in refused:
            self._send(connection, Report(refused=[request_id]))

    def _release(self, request_id: str) -> Connection:
        """Returns whose request it was. Who has waited for the id is next."""
        connection = self._in_flight.pop(request_id)
        self._num_held[connection] -= 1
        if not self._num_held[connection]:
            del self._num_held[connection]
        self._ending.discard(request_id)
        successor = self._successors.pop(request_id, None)
        if successor is not None:
            self._due += self._routed(*successor)
        return connection

    def _let_in(self) -> None:
        """A new front end has been handed in; it is told at once that the engine can serve."""
        try:
            sock = let_in(self._door)
        except EOFError:  # the first connection says so too
            self._poll.unregister(self._door)
            return
        except OSError:  # the front end finds its connection closed, and asks for another
            return
        connection = self._open[sock.fileno()] = Connection(sock)
        self._poll.register(sock, select.POLLIN)
        self._send(connection, Ready(self._info))

    def _leave(self, connection: Connection) -> None:
        """Ends what the engine is at work on for a front end that is gone, or is cut off."""
        if connection is self._first:
            raise EOFError("who started the engine is gone")
        self._poll.unregister(connection.socket)
        del self._open[connection.socket.fileno()]
        connection.is_open = False
        connection.socket.close()
        if (watch := self._watch(connection, is_on=False)) is not None:
            self._due.append(watch)
        for request_id, successor in list(self._successors.items()):
            if successor.connection is connection:
                del self._successors[request_id]
        lost = [name for name, whose in self._in_flight.items() if whose is connection]
        self._ending.update(lost)
        self._due += [Cancel(request_id, FinishReason.CANCELLED) for request_id in lost]
