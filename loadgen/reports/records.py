"""The records of a run as CSV, a row per request: what every figure was made from.

Instants are seconds since the start of the run, durations seconds; empty where there is none.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from loadgen.scoring.score import is_on_pace, is_on_time
from loadgen.targets.record import Record

COLUMNS = (
    "run",  # which of several: the rate of a sweep, the policy of a comparison
    "index",
    "scheduled_at",
    "sent_at",
    "ended_at",
    "tier",
    "importance",
    "tenant",
    "application",
    "prompt_tokens",
    "output_tokens",  # asked for
    "received_tokens",
    "outcome",
    "ttft_s",
    "server_ttft_s",  # as the server timed it; what ttft_s exceeds it by was spent on the way
    "mean_tbt_s",
    "worst_tbt_s",
    "ttlt_s",
    "on_time",
    "on_pace",
    "relegated",
    "error",
)


def write(runs: Iterable[tuple[str, Iterable[Record]]], path: Path) -> None:
    """`runs`: the name of each run, and its records."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name, records in runs:
            for record in records:
                writer.writerow([name, *_cells(record)])


def _cells(record: Record) -> Iterator[object]:
    request, gaps = record.request, record.gaps_s
    yield request.index
    yield _rounded(request.at)
    yield _rounded(record.sent_at)
    yield _rounded(record.ended_at)
    yield request.tier
    yield request.importance.value if request.importance else ""
    yield request.tenant
    yield request.application
    yield request.prompt_len
    yield request.output_len
    yield len(record.token_at)
    yield record.outcome.value
    yield _rounded(record.ttft_s)
    yield _rounded(record.server_ttft_s)
    yield _rounded(sum(gaps) / len(gaps) if gaps else None)
    yield _rounded(max(gaps, default=None))
    yield _rounded(record.ttlt_s)
    yield int(is_on_time(record))
    yield int(is_on_pace(record))
    yield int(record.relegated)
    yield record.error


def _rounded(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.6f}"
