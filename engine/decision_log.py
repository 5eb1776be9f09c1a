"""Reads a decision log: its files, its lines, its requests.

A reader streams: of the entries only those of requests in flight are remembered, and of these no
more than MOST_OPEN. Lines that a full disk or a sudden end has cut short are left out and counted;
any other line that is none of a decision log's is an error which names file and line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from engine.decision_header import Header, header_of
from engine.decision_lines import BadLog, Entry, Logged, Place, entry_of, flood, logged, values_of

MOST_OPEN = 100_000  # requests without an end: more were lost with their engine, or from the log
MOST_LINE_BYTES = 1 << 20
_START = '{"kind": "'


def files_of(path: Path) -> list[Path]:
    """Returns the files of a log that has been written to `path`, the oldest first: those that got
    a number when they were full, and the one that is open.
    """
    numbered = [
        (int(number), each)
        for each in path.parent.glob(f"{_escaped(path.name)}.*")
        if (number := each.name.removeprefix(f"{path.name}.")).isdecimal() and number.isascii()
    ]
    found = [each for _, each in sorted(numbered, reverse=True)]
    return found if found and not path.exists() else [*found, path]


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


class Step(NamedTuple):
    """An entry as it is read, with its request as it is known by then, where its arrival is in the
    log; or no entry, and a request whose end is not in the log. `is_over`: no more of it is read.
    """

    entry: Entry | None
    request: Logged | None
    is_over: bool = False


class DecisionLogReader:
    """Reads the files of one log, the oldest first. `header` is what has last been told of the
    engine, `num_torn` how many lines were cut short, and `num_unknown` how many ends belong to
    requests that arrived before the log begins.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self.header: Header | None = None
        self.num_torn = 0
        self.num_unknown = 0

    def entries(self) -> Iterator[Entry]:
        """Yields every line but those of the kind "engine", of which the last is `header`. Raises
        BadLog, or OSError.
        """
        for path in self._paths:
            yield from self._entries_of(path)

    def _entries_of(self, path: Path) -> Iterator[Entry]:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(MOST_LINE_BYTES + 1):
                number += 1
                place = Place(path, number)
                if len(raw) > MOST_LINE_BYTES:
                    raise BadLog(f"{place}: longer than {MOST_LINE_BYTES} bytes")
                if not raw.strip():
                    continue
                try:
                    values = values_of(raw, place)
                except BadLog:
                    if not _is_torn(raw):
                        raise
                    self.num_torn += 1
                    continue
                entry = entry_of(values, place)
                if entry.kind == "engine":
                    self.header = header_of(entry)
                elif self.header is None:
                    raise BadLog(f'{place}: no line of the kind "engine" is before it')
                else:
                    yield entry

    def requests(self, keeps_entries: bool = False) -> Iterator[Logged]:
        """Yields each request when its end is read, and at last those whose end is not in the log.
        `keeps_entries` gives each all of its lines. Raises BadLog, or OSError.
        """
        for step in self.steps(keeps_entries):
            if step.is_over and step.request is not None:
                yield step.request

    def steps(self, keeps_entries: bool = False) -> Iterator[Step]:
        """Yields every entry in the order of the log, and whose end is not in it. Raises BadLog, or
        OSError.
        """
        open_: dict[tuple[str, str], Logged] = {}  # the oldest first
        for entry in self.entries():
            is_end = entry.kind in ("finished", "refused")
            if is_end and "count" in entry.values:
                yield Step(entry, flood(entry), is_over=True)
                continue
            if entry.kind == "arrived":
                new = logged(entry)
                known = open_.get(entry.key)
                if known is not None and new.attempt > known.attempt:  # with another engine
                    known.attempt = new.attempt
                    new = known
                elif known is not None:
                    yield Step(None, open_.pop(entry.key), is_over=True)
                elif len(open_) >= MOST_OPEN:
                    yield Step(None, open_.pop(next(iter(open_))), is_over=True)
                open_[entry.key] = new
            request = open_.get(entry.key)
            if request is None:
                self.num_unknown += is_end
            else:
                self._note(request, entry, keeps_entries)
            if is_end:
                open_.pop(entry.key, None)
            yield Step(entry, request, is_over=is_end)
        for request in open_.values():
            yield Step(None, request, is_over=True)

    def _note(self, request: Logged, entry: Entry, keeps_entries: bool) -> None:
        """Adds what an entry says of its request."""
        if keeps_entries:
            request.entries.append(entry)
        if entry.kind == "admitted":
            request.promised = bool(entry.values.get("on_time"))
        elif entry.kind in ("finished", "refused"):
            request.take_end(entry)


def _is_torn(raw: bytes) -> bool:
    """Says whether a line that cannot be read has been cut short."""
    text = raw.decode(errors="replace").rstrip("\n")
    return _START.startswith(text[: len(_START)]) and not text.endswith("}")
