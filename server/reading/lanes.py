"""The processes that read for a front end (`server.reading.reader`), each with its queue.

A lane is one process and its queue. One lane is for short messages and one for long ones, so that
no short prompt waits behind a long one. Within a lane tenants take turns. A process that is lost is
started again. Then what waited waits on, and the job that the process was at is tried once more,
unless it took too long. That is judged by the CPU time that it used: if the process was stopped,
the job is not at fault.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable

import structlog

from engine.processes.backoff import Backoff
from engine.processes.spawn import spawn
from engine.processes.watch import LOADING_S
from engine.processes.wire import Wire, open_wire
from server import errors
from server.admission.quota import Caller, Turns
from server.reading.messages import Job, JobResult, Loaded, Start, took_too_long

log = structlog.get_logger()

FIRST_DELAY_S = 0.1  # before a lost process is started again; doubled for each quick loss
# How long a job may take by the clock. This catches a process that does not even use its CPU, and
# is generous, since a process may get little of it on a busy machine.
PATIENCE = 4.0  # times the limit of CPU time
LEAST_PATIENCE_S = 10.0
# Memory that is freed goes back to the system; tokenizers starts no threads for a single text.
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072:glibc.malloc.trim_threshold=1048576",
}


class ReaderLost(Exception):
    """The process that reads has ended, or never began to."""


class ReaderProcess:
    """A child that runs `server.reading.reader`."""

    def __init__(self, name: str, start: Start, on_closed: Callable[[], None]) -> None:
        """Starts the process; raises OSError when the system starts none. `on_closed()` is told of
        its end.
        """
        environment = {**ENVIRONMENT, **os.environ}
        child = spawn("server.reading.reader", f"reader-{name}", start, 1, environment)
        child.pulse.close()  # what it is asked has a limit of its own
        self._child, (self._socket,) = child.process, child.sockets
        self._on_closed = on_closed
        self._wire: Wire | None = None
        self._reply: asyncio.Future[JobResult | Loaded] | None = None
        self.is_closed = False

    @property
    def pid(self) -> int:
        """Returns the id of the process."""
        return self._child.pid

    async def load(self) -> None:
        """Waits until the process can read. Raises ReaderLost, and TimeoutError."""
        reply = self._reply = asyncio.get_running_loop().create_future()
        self._wire = await open_wire(self._socket, self._received, self._closed)
        async with asyncio.timeout(LOADING_S):
            await reply

    async def ask(self, job: Job, patience_s: float) -> JobResult:
        """Has the process do the job; returns its result. Raises ReaderLost, and TimeoutError after
        `patience_s` seconds.
        """
        assert self._wire is not None
        if self.is_closed:
            raise ReaderLost
        self._reply = asyncio.get_running_loop().create_future()
        self._wire.post(job)
        async with asyncio.timeout(patience_s):
            answer = await self._reply
        assert not isinstance(answer, Loaded)
        return answer

    async def end(self) -> int:
        """Ends the process. Returns its exit code, negative for a signal."""
        self._child.kill()
        if self._wire is not None:
            self._wire.close()
            await self._wire.closed.wait()
        return await asyncio.to_thread(self._child.wait)

    def _received(self, message: JobResult | Loaded) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(message)

    def _closed(self) -> None:
        self.is_closed = True
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(ReaderLost())
        self._on_closed()


class Errand:
    """A job, who asked for it, and the future of its result."""

    def __init__(self, caller: Caller, job: Job) -> None:
        self.caller = caller
        self.job = job
        self.reply: asyncio.Future[JobResult] = asyncio.get_running_loop().create_future()
        self.was_lost = False  # with a process, once

    def settle(self, reply: JobResult | Exception) -> None:
        """Hands the result, or an error, to whoever still waits for it."""
        if self.reply.done():
            return
        if isinstance(reply, Exception):
            self.reply.set_exception(reply)
        else:
            self.reply.set_result(reply)


class Lane:
    """One process that reads, and the jobs that wait for it."""

    def __init__(self, name: str, start: Start, patience_s: float | None = None) -> None:
        """`patience_s` is how long a job may take by the clock; None: as the limit of CPU time has
        it.
        """
        self.name = name
        self._start = start
        self._patience_s = patience_s or max(PATIENCE * start.cpu_s, LEAST_PATIENCE_S)
        self._turns: Turns[Errand] = Turns()
        self._current: Errand | None = None
        self._news = asyncio.Event()  # something waits, or the process has ended
        self._process: ReaderProcess | None = None
        self._keeping: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Returns the id of the process that reads; None while there is none."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Starts the process, and keeps one running until `stop`."""
        self._keeping = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Ends the process."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)

    async def do(self, caller: Caller, job: Job) -> JobResult:
        """Waits for the job's turn and then for its result. Raises CallError and InvalidRequest."""
        errand = Errand(caller, job)
        self._turns.put(caller, errand)
        self._news.set()
        try:
            return await errand.reply
        finally:
            self._turns.drop(caller, errand)

    async def _keep(self) -> None:
        """Starts the process, has it do what waits, and starts it again."""
        backoff = Backoff(FIRST_DELAY_S)
        while True:
            started_at = time.monotonic()
            try:
                process = ReaderProcess(self.name, self._start, self._news.set)
            except OSError as error:  # no memory or no file descriptors, at the moment
                log.error("reader not started", lane=self.name, reason=str(error))
                self._give_up()
            else:
                if await self._serve(process):
                    continue  # it was ended for its work's sake
                backoff.lost(time.monotonic() - started_at)
            await asyncio.sleep(backoff.next_s())

    async def _serve(self, process: ReaderProcess) -> bool:
        """Has the process do what waits until it ends. Returns whether it ended because a job took
        too long.
        """
        is_loaded = False
        self._process = process
        try:
            await process.load()
            is_loaded = True
            while True:
                self._current = await self._next(process)
                self._current.settle(await process.ask(self._current.job, self._patience_s))
                self._current = None
        except ReaderLost:
            pass
        except TimeoutError:
            log.warning("reader hangs", lane=self.name)
        finally:
            code = await process.end()
            self._process = None
        is_late = code == -signal.SIGXCPU
        log.warning("reader lost", lane=self.name, code=code, took_too_long=is_late)
        if is_loaded:
            self._settle_lost(is_late)
        else:
            self._give_up()
        return is_late

    async def _next(self, process: ReaderProcess) -> Errand:
        """Waits for the next errand. Raises ReaderLost when the process ends."""
        while True:
            while not (self._turns or process.is_closed):
                self._news.clear()
                await self._news.wait()
            if process.is_closed:
                raise ReaderLost
            errand = self._turns.take()
            if not errand.reply.done():
                return errand

    def _settle_lost(self, is_late: bool) -> None:
        """Settles, or tries again, the job that the process was at when it was lost."""
        errand, self._current = self._current, None
        if errand is None or errand.reply.done():
            return
        if is_late:
            errand.settle(took_too_long(errand.job.field, self._start.cpu_s))
        elif errand.was_lost:
            errand.settle(errors.reader_error())
        else:
            errand.was_lost = True
            self._turns.put_back(errand.caller, errand)

    def _give_up(self) -> None:
        """Fails all that waits, since the process does not start."""
        while self._turns:
            self._turns.take().settle(errors.reader_lost())
