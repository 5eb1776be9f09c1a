"""Looks a request up in a decision log: the same timeline as the engine had of it.

The newest of the log is searched, backwards from file to file, up to a stated number of bytes; only
lines that have the id are parsed. Lines that cannot be read say nothing, as a log is written while
it is read, and may have been cut short.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from engine.deciding.record import only_tenant, remember
from engine.deciding.request import Request, Sampling, Share, key_of
from engine.deciding.timeline import Ahead, Decision, Timeline
from engine.decision_lines import BadLog, Entry, Place, end_of, entry_of, logged, values_of
from engine.decision_log import files_of

MOST_BYTES = 64 << 20  # that are searched
MOST_LINES = 20_000  # of one id that are looked at, the last
BLOCK_BYTES = 1 << 20
NO_END = "its end is not in the decision log: its engine was lost, or still has it"

_NO_VALUES = frozenset({"at", "unix_s", "predicted_at", "start", "known", "planned_at"})


def find(
    path: Path, name: str, tenant: str | None = None, most_bytes: int = MOST_BYTES
) -> Timeline:
    """Returns the timeline of the request that its tenant (None: any) calls `name`, as
    `Record.find` does, of the last one where the name was used again. Raises LookupError where
    there is none, ValueError where several tenants have one, and OSError.
    """
    found: dict[tuple[str, str], list[Entry]] = {}  # by tenant and name
    for entry in _entries(path, (name, f"{name}/0"), most_bytes):
        if tenant is None or entry.tenant == tenant:
            own = found.setdefault(entry.key, [])
            if _begins(entry):
                own.clear()
            own.append(entry)
    if tenant is None:
        tenant = only_tenant(name, {tenant for tenant, _ in found})
    for called in (name, f"{name}/0"):
        if entries := found.get((tenant, called)):
            return timeline_of(entries)
    raise LookupError(f"request_id {name!r} is not in the decision log")


def _begins(entry: Entry) -> bool:
    """Says whether a request begins, and not only again with another engine."""
    return entry.kind == "arrived" and entry.values.get("attempt", 1) == 1


# Search


def _entries(path: Path, names: Iterable[str], most_bytes: int) -> Iterator[Entry]:
    """Yields the entries of requests of these names, the oldest first."""
    needles = [f'"request_id": {json.dumps(name)}'.encode() for name in names]
    for raw in _lines(files_of(path), needles, most_bytes):
        try:
            place = Place(path, 0)
            entry = entry_of(values_of(raw, place), place)
        except BadLog:
            continue
        if entry.kind != "engine" and "count" not in entry.values:
            yield entry


def _lines(paths: list[Path], needles: list[bytes], most_bytes: int) -> Iterable[bytes]:
    """Returns the last lines with one of the needles, in their order. A file that is gone has been
    numbered, or deleted as the oldest, since it was listed. What is no file (a pipe) remembers
    nothing: whoever opened it might wait for ever, or take from another what was meant for it.
    """
    kept: deque[bytes] = deque(maxlen=MOST_LINES)
    for path in reversed(paths):
        if not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - most_bytes))
                newest = deque(_matching(file, needles), MOST_LINES - len(kept))
        except FileNotFoundError:
            continue
        kept.extendleft(reversed(newest))
        most_bytes -= size
        if most_bytes <= 0 or len(kept) == MOST_LINES:
            break
    return kept


def _matching(file: BinaryIO, needles: list[bytes]) -> Iterator[bytes]:
    """Yields the lines of a file, from where it stands on, that have one of the needles."""
    rest = b""
    while block := file.read(BLOCK_BYTES):
        lines, newline, cut = block.rpartition(b"\n")
        if not newline:
            rest = (rest + cut)[:BLOCK_BYTES]  # none of ours is as long
            continue
        whole, rest = rest + lines, cut
        if any(needle in whole for needle in needles):
            yield from (line for line in whole.split(b"\n") if any(n in line for n in needles))


# From entries to a timeline


def timeline_of(entries: Iterable[Entry]) -> Timeline:
    """Returns the timeline of one request from all its entries. Raises LookupError where its
    arrival is not among them.
    """
    timeline: Timeline | None = None
    for entry in entries:
        try:
            if entry.kind == "arrived":
                request = _request(entry)
                before = timeline.decisions if timeline else []  # with an engine that was lost
                timeline = Timeline(request, before, note=NO_END)
            elif timeline is not None:
                _add(timeline, entry)
        except BadLog:
            continue
    if timeline is None:
        raise LookupError("the decision log no longer has the arrival of this request")
    return timeline


def _request(entry: Entry) -> Request:
    asked, said = logged(entry), entry.values
    source, trace_id, reason = map(said.get, ("target_source", "trace_id", "target_reason"))
    return Request(
        key_of(asked.tenant, asked.request_id),
        range(asked.prompt_tokens),
        Sampling(max_tokens=asked.max_tokens),
        entry.at,
        asked.targets,
        asked.importance,
        asked.tier,
        asked.application,
        asked.tenant,
        source if isinstance(source, str) else "",
        Share(asked.share),
        asked.attempt,
        asked.timeout_s,
        trace_id=trace_id if isinstance(trace_id, str) else "",
        target_reason=reason if isinstance(reason, str) else "",
    )


def _add(timeline: Timeline, entry: Entry) -> None:
    """Adds what an entry says."""
    if entry.kind not in ("finished", "refused"):
        remember(timeline.decisions, _decision(entry))
        return
    end = timeline.end = end_of(entry, timeline.request.arrived_at)
    timeline.note = ""
    values = {"output_tokens": float(end.output_tokens)} if "output_tokens" in entry.values else {}
    detail = entry.detail or end.reason
    remember(timeline.decisions, Decision(entry.at, entry.kind, detail, values))


def _decision(entry: Entry) -> Decision:
    said = entry.values
    values = {
        name: float(value)
        for name, value in said.items()
        if isinstance(value, int | float) and name not in _NO_VALUES
    }
    predicted_at = said.get("predicted_at")
    is_told = isinstance(predicted_at, int | float)
    ahead = tuple(_ahead(said.get("ahead", ())))
    return Decision(
        entry.at, entry.kind, entry.detail, values, predicted_at if is_told else None, ahead
    )


def _ahead(parts: object) -> Iterator[Ahead]:
    for part in parts if isinstance(parts, list | tuple) else ():
        match part:
            case [str(tier), str(share), float() | int() as seconds, float() | int() as beyond_s]:
                yield Ahead(tier, share, float(seconds), float(beyond_s))
