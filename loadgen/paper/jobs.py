"""Independent pieces of work, done by several processes, and kept in a file as they end, so that an
interrupted evaluation goes on where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time
from typing import Any, Concatenate, NamedTuple, TypeVar

import loadgen
from loadgen.paper import serving
from loadgen.paper.contender import Contender
from loadgen.paper.load import Load
from loadgen.scoring.criterion import Criterion
from loadgen.targets.simulated import uncollected

T = TypeVar("T")


class Job(NamedTuple):
    """A question about one load and one contender. `asks` is the function of `serving` that answers
    it, which may take minutes; the answer is what JSON can hold.
    """

    asks: Callable[Concatenate[Load, Contender, Criterion, ...], Any]
    load: Load
    contender: Contender = Contender()
    criterion: Criterion = serving.ENVELOPE
    tier: str = ""  # of `replicas`, `silo` and `lateness`: this one alone

    @property
    def key(self) -> str:
        """Returns what tells this question from every other."""
        return repr((self.asks.__name__, *self[1:]))

    @property
    def title(self) -> str:
        """Says how the question is called where its answer is told."""
        load, who = self.load, self.contender.name
        rate = f" at {load.rate}/s" if load.rate else ""
        rate += f" (seed {load.seed})" if load.seed else ""
        return f"{self.asks.__name__} of {who}, {load.lengths}{rate} {self.tier}".strip()

    def answer(self) -> Any:
        """Answers the question."""
        tier = (self.tier,) if self.tier else ()
        return self.asks(self.load, self.contender, self.criterion, *tier)


# What an experiment is: it asks jobs, is sent their answers, and may ask again.
Experiment = Generator[Sequence[Job], list[Any], T]


class Answered(NamedTuple):
    """An answer, and the seconds of processor time that it took."""

    value: Any
    seconds: float


def _timed(job: Job) -> Answered:
    start = process_time()
    with uncollected():
        value = job.answer()
    return Answered(value, process_time() - start)


# The decisions, the virtual time that they are made in, and what is sent, simulated and scored.
_CODE = (
    *("engine/deciding/**/*.py", "engine/routing/**/*.py"),
    *("engine/simulator.py", "engine/fleet.py", "loadgen/**/*.py"),
)


def fingerprint(root: Path = Path(loadgen.__path__[0]).parent) -> str:
    """Names the state of the code on which answers depend: other code asks everything anew."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _CODE for path in root.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@dataclass
class Answers:
    """Answers by the key of their job, kept in a JSON file that belongs to one state of the code:
    what other code answered is asked anew.
    """

    path: Path | None
    is_fresh: bool = False  # what the file holds is forgotten
    code: str = field(default_factory=fingerprint)
    by_key: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.is_file() and not self.is_fresh:
            document = json.loads(self.path.read_text(encoding="utf-8"))
            if document.get("code") == self.code:
                self.by_key = document["answers"]

    def add(self, job: Job, value: Any) -> None:
        """Keeps an answer, in the file too."""
        self.by_key[job.key] = value
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            document = {"code": self.code, "answers": self.by_key}
            partial = self.path.with_name(self.path.name + ".partial")
            partial.write_text(json.dumps(document, indent=1), encoding="utf-8")
            os.replace(partial, self.path)  # whoever interrupts this leaves the last whole file


def run_all(
    experiments: Sequence[Experiment[T]],
    answers: Answers,
    processes: int,
    say: Callable[[str], None],
) -> list[T]:
    """Runs experiments side by side and returns what each comes to, in their order. `say` gets a
    line for every job that ends.
    """
    waiting: dict[int, Sequence[Job]] = {i: next(each) for i, each in enumerate(experiments)}
    results: dict[int, T] = {}
    running: dict[Future[Answered], Job] = {}
    with worker_pool(processes) as pool:
        while True:
            _advance(experiments, waiting, results, answers)
            asked = {job.key: job for jobs in waiting.values() for job in jobs}
            started = {job.key for job in running.values()}
            for key, job in asked.items():
                if key not in answers.by_key and key not in started:
                    running[pool.submit(_timed, job)] = job
            if not running:
                return [results[i] for i in range(len(experiments))]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                value, seconds = future.result()
                answers.add(job, value)
                say(f"{seconds:5.0f} s  {job.title}: {_short(value)} ({len(running)} to go)")


@contextlib.contextmanager
def worker_pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Makes worker processes that last as long as the block.

    A signal that ends the block ends them, too, though their work may take minutes more; and they
    end with this process, however it does.
    """
    with ProcessPoolExecutor(processes, initializer=_follow_parent) as pool:
        try:
            yield pool
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            pool.shutdown(cancel_futures=True)  # its thread ends before this process does
            raise


def _follow_parent() -> None:
    """Makes a child leave signals to its parent, but for the one that is sent to it alone."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _advance(
    experiments: Sequence[Experiment[T]],
    waiting: dict[int, Sequence[Job]],
    results: dict[int, T],
    answers: Answers,
) -> None:
    """Sends every experiment the answers that it waits for, as often as all of them are there."""
    for i in list(waiting):
        while i in waiting and all(job.key in answers.by_key for job in waiting[i]):
            values = [answers.by_key[job.key] for job in waiting[i]]
            try:
                waiting[i] = experiments[i].send(values)
            except StopIteration as end:
                results[i] = end.value
                del waiting[i]


def _short(value: Any) -> str:
    """Writes an answer with its numbers to three digits."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return " ".join(_short(each) for each in value)
    return str(value)
