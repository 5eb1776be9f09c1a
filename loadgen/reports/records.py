"""The records of runs as CSV, a row per request: what every figure was made from, and enough to
make a report again without a run.

Instants are seconds since the start of the run, durations seconds; a cell is empty where there is
nothing to tell. Most columns are for people and round seconds to microseconds; the last ones repeat
the instants to the last digit. `read` takes those, and ignores columns that follow from others
(latencies, whether a request was on time).

What belongs to a run and to no request stands in `run_facts` of the run's first row, as JSON. It is
what figures depend on: who was asked, for how long, which part was measured, how it ended. Not in a
file are the command and its seed, what a search found, and what a simulated target says of itself
over time; a run in which nothing was sent has no row and is lost.
"""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from loadgen.scoring.modes import Measurement
from loadgen.scoring.score import is_on_pace, is_on_time
from loadgen.scoring.summary import Measuring, summarise
from loadgen.targets.record import Outcome, Record
from loadgen.targets.target import End, Run
from loadgen.workload.plan import PlannedRequest
from loadgen.workload.served import TargetInfo
from niyama.client.values import Importance, Targets, Tier

T = TypeVar("T")

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
    "server_ttft_s",  # as the server timed it; the rest of ttft_s was spent on the way
    "mean_tbt_s",
    "worst_tbt_s",
    "ttlt_s",
    "on_time",
    "on_pace",
    "relegated",
    "error",
    "promised",  # at its admission: on_time or late; empty where nothing was
    "ttft_target_s",  # what the request was judged by
    "tbt_target_s",
    "ttlt_target_s",
    "explicit",  # whether the targets themselves were sent, not the tier's name
    "prefix",  # which of the shared prefixes the prompt starts with, and how long it is
    "prefix_tokens",
    "leaves_after",  # tokens after which the client leaves, as planned
    "leaves_s",  # or seconds
    "timeout_s",  # the call's own deadline
    "replica",  # to which it was sent, where there are several
    "request_id",  # with which a live server explains it (`python -m client explain ID`)
    "stated",  # the max_tokens that its caller stated, where a log says it
    "seed",  # of the prompt's tokens and of sampling
    "exact",  # scheduled_at, sent_at, ended_at and server_ttft_s to the last digit; - for none
    "token_at",  # the instant of each token
    "run_facts",
)
_ON_TIME, _LATE = "on_time", "late"
_LARGEST_CELL = 1 << 30  # characters: the instants of a long output are more than csv's 131,072


class BadRecords(ValueError):
    """A file that holds no records that can be read; the message is one line."""


def write(runs: Sequence[Measurement], path: Path) -> None:
    """Writes the records of every run, in order. Raises OSError."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for run in runs:
            facts = json.dumps(_facts(run))
            for record in run.records:
                writer.writerow([run.name, *_outline(record), *_details(record), facts])
                facts = ""


def _outline(record: Record) -> Iterator[object]:
    """Yields the cells for people."""
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


def _details(record: Record) -> Iterator[object]:
    """Yields the cells that only making a report again needs."""
    request = record.request
    yield "" if record.promised is None else _ON_TIME if record.promised else _LATE
    yield from map(_cell, (request.targets.ttft, request.targets.tbt, request.targets.ttlt))
    yield int(request.explicit)
    yield _cell(request.prefix)
    yield request.prefix_len
    yield _cell(request.cancel_after)
    yield _cell(request.leaves_s)
    yield _cell(request.timeout_s)
    yield record.replica
    yield record.request_id
    yield _cell(request.stated)
    yield request.seed
    exact = (request.at, record.sent_at, record.ended_at, record.server_ttft_s)
    yield " ".join(_cell(value) or "-" for value in exact)
    yield " ".join(map(repr, record.token_at))


def _rounded(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.6f}"


def _cell(number: float | None) -> str:
    """Writes a number so that reading it gives the same number again."""
    return "" if number is None else repr(number)


def _facts(run: Measurement) -> dict[str, Any]:
    summary, target = run.summary, run.summary.target
    return {
        "contender": run.contender,
        "rate": run.rate,
        "duration_s": run.duration_s,
        "measuring": asdict(run.measuring),
        "alone": {each.tenant: each.alone for each in summary.portions if each.alone is not None},
        "interrupted_by": run.interrupted_by,
        "end": summary.end.value,
        "problem": summary.problem,
        "tiers": [score.group for score in summary.by_tier],
        "target": asdict(target)
        | {
            "tiers": [
                {"name": t.name, "targets": asdict(t.targets), "importance": t.importance.value}
                | {"max_gap": t.max_gap if t.max_gap is None else str(t.max_gap)}
                for t in target.tiers
            ]
        },
    }


def read(path: Path) -> list[Measurement]:
    """Reads every run of a file that `write` wrote, and makes its figures again. Only `series` of a
    measurement is not in a file. Raises BadRecords, or OSError.
    """
    limit = csv.field_size_limit(_LARGEST_CELL)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            runs = _runs(csv.DictReader(file, strict=True))
        if not runs:
            raise BadRecords("there is no run in it")
        return [_measurement(*run) for run in runs]
    except (csv.Error, ValueError) as error:
        raise BadRecords(f"{path}: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _runs(reader: csv.DictReader[str]) -> list[tuple[str, str, list[Record]]]:
    """Returns the name, the facts and the records of each run."""
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise BadRecords(f"no column {missing[0]}: not records, or those of an older version")
    runs: list[tuple[str, str, list[Record]]] = []
    for row in reader:
        if row["run_facts"]:
            runs.append((row["run"], row["run_facts"], []))
        elif not runs:
            raise BadRecords("the first row has no run_facts")
        try:
            runs[-1][2].append(_record(row))
        except (ValueError, AttributeError, TypeError) as error:  # a bad cell, or none
            raise BadRecords(f"line {reader.line_num}: {error}") from error
    return runs


def _record(row: Mapping[str, str]) -> Record:
    at, sent_at, ended_at, server_ttft_s = (
        None if text == "-" else float(text) for text in row["exact"].split(" ")
    )
    if at is None or sent_at is None:
        raise ValueError("a request without an instant at which it was sent")
    request = PlannedRequest(
        index=int(row["index"]),
        at=at,
        tier=row["tier"],
        targets=Targets(
            _if_any(float, row["ttft_target_s"]),
            _if_any(float, row["tbt_target_s"]),
            _if_any(float, row["ttlt_target_s"]),
        ),
        prompt_len=int(row["prompt_tokens"]),
        output_len=int(row["output_tokens"]),
        explicit=row["explicit"] == "1",
        importance=_if_any(Importance, row["importance"]),
        tenant=row["tenant"],
        application=row["application"],
        prefix=_if_any(int, row["prefix"]),
        prefix_len=int(row["prefix_tokens"]),
        cancel_after=_if_any(int, row["leaves_after"]),
        leaves_s=_if_any(float, row["leaves_s"]),
        timeout_s=_if_any(float, row["timeout_s"]),
        seed=int(row["seed"]),
        stated=_if_any(int, row["stated"]),
    )
    return Record(
        request,
        sent_at,
        Outcome(row["outcome"]),
        array("d", map(float, row["token_at"].split())),
        ended_at,
        row["relegated"] == "1",
        server_ttft_s,
        row["error"],
        _if_any(_is_on_time, row["promised"]),
        row["replica"],
        row["request_id"],
    )


def _is_on_time(promised: str) -> bool:
    if promised not in (_ON_TIME, _LATE):
        raise ValueError(f"{promised!r} is no promise")
    return promised == _ON_TIME


def _if_any(parse: Callable[[str], T], text: str) -> T | None:
    return parse(text) if text else None


def _measurement(name: str, text: str, records: list[Record]) -> Measurement:
    """Makes the figures of a run again from its facts and records."""
    try:
        facts = json.loads(text)
        measuring, duration_s = Measuring(**facts["measuring"]), float(facts["duration_s"])
        run = Run(records, end=End(facts["end"]), problem=facts["problem"])
        target, alone = _target(facts["target"]), facts.get("alone")
        return Measurement(
            name,
            summarise(facts["tiers"], duration_s, target, run, measuring, alone),
            records,
            contender=facts["contender"],
            rate=facts["rate"],
            duration_s=duration_s,
            measuring=measuring,
            interrupted_by=facts["interrupted_by"],
        )
    except (ValueError, TypeError, KeyError) as error:
        raise BadRecords(f"run_facts of {name!r}: {error!r}") from error


def _target(facts: Mapping[str, Any]) -> TargetInfo:
    tiers = tuple(
        Tier(
            tier["name"],
            Targets(**tier["targets"]),
            Importance(tier["importance"]),
            _if_any(float, tier.get("max_gap") or ""),
        )
        for tier in facts["tiers"]
    )
    return TargetInfo(**{**facts, "tiers": tiers})
