"""Figures as JSON. The schema is documented in loadgen/README.md; `schema` carries its version.

Durations are float seconds, rates per second, shares between 0 and 1, null where there is none.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.deciding.outcome import Fate
from loadgen.scoring.against import Replayed
from loadgen.scoring.capacity import Capacity
from loadgen.scoring.modes import Measurement
from loadgen.scoring.score import Score
from loadgen.scoring.summary import Summary

SCHEMA = "niyama.loadgen/1"

Document = dict[str, Any]


def to_json(
    mode: str,
    arguments: Mapping[str, Any],
    measurements: Sequence[Measurement],
    capacities: Mapping[str, Capacity] | None = None,
    replicas: Mapping[str, int] | None = None,
) -> Document:
    """Returns the figures of runs as a document that JSON can hold. `arguments` is what was asked
    for, so that it can be asked for again; `capacities` and `replicas` what was found, by contender
    ("" where nothing was compared).
    """
    document: Document = {"schema": SCHEMA, "mode": mode, "arguments": dict(arguments)}
    for contender, capacity in (capacities or {}).items():
        if contender:
            document.setdefault("capacities", {})[contender] = _capacity(capacity)
        else:
            document["capacity"] = _capacity(capacity)
    for contender, count in (replicas or {}).items():
        if contender:
            document.setdefault("replicas_of", {})[contender] = count
        else:
            document["replicas"] = count
    document["runs"] = [_run(each) for each in measurements]
    return document


def _capacity(capacity: Capacity) -> Document:
    return {
        "passed_rps": capacity.passed,
        "failed_rps": capacity.failed if math.isfinite(capacity.failed) else None,
    }


def _run(measurement: Measurement) -> Document:
    who: Document = {"name": measurement.name, "contender": measurement.contender}
    who |= {"rate": measurement.rate} | _summary(measurement.summary)
    return who if measurement.replayed is None else who | {"log": _log(measurement.replayed)}


def _log(replayed: Replayed) -> Document:
    """Returns what really became of the requests of a replayed log."""
    return {
        "files": list(replayed.files),
        "factor": replayed.factor,
        "guesses": replayed.guesses._asdict(),
        "by_tier": [
            {
                "group": each.group,
                "attainment": each.attainment,
                "fates": {fate.value: each.fates.get(fate, 0) for fate in Fate},
            }
            for each in replayed.happened
        ],
    }


def write(document: Document, path: Path) -> None:
    """Writes a document as JSON. Raises OSError."""
    path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _summary(summary: Summary) -> Document:
    return {
        "target": _target(summary),
        "end": summary.end.value,
        "problem": summary.problem,
        "invalid": summary.invalid,
        "window": dataclasses.asdict(summary.window),
        "requested_rps": summary.requested_rps,
        "achieved_rps": summary.achieved_rps,
        "lag": dataclasses.asdict(summary.lag),
        "backlog_growth": summary.backlog_growth,
        "backlog_noise": summary.backlog_noise,
        "num_abandoned": summary.num_abandoned,
        "fairness": summary.fairness,
        "portions": [each._asdict() | {"worse_by": each.worse_by} for each in summary.portions],
        "long_prompt_tokens": summary.long_prompt_tokens,
        "errors": [{"error": error, "count": count} for error, count in summary.errors],
        "total": _score(summary.total),
        **{
            name: [_score(each) for each in getattr(summary, name)]
            for name in (
                *("by_tier", "by_importance", "by_tenant"),
                *("by_replica", "by_history", "by_prompt"),
            )
        },
    }


def _target(summary: Summary) -> Document:
    target = summary.target
    return {
        "name": target.name,
        "model": target.model,
        "policy": target.policy,
        "weights": dict(target.weights),
        "stated_output": target.stated_output or None,
        "tiers": [
            {
                "name": tier.name,
                "ttft_s": tier.targets.ttft,
                "tbt_s": tier.targets.tbt,
                "ttlt_s": tier.targets.ttlt,
                "importance": tier.importance.value,
                "max_gap": tier.max_gap if tier.max_gap != math.inf else "inf",
            }
            for tier in target.tiers
        ],
    }


def _score(score: Score) -> Document:
    document = dataclasses.asdict(score)
    for name in ("ttft", "tbt", "ttlt"):
        document[f"{name}_s"] = getattr(score, name)._asdict()
        del document[name]
    told = score.promises
    document["promises"] = told._asdict() | {
        "broken_share": told.broken_share,
        "precision_on_time": told.precision_on_time,
        "precision_late": told.precision_late,
        "recall_late": told.recall_late,
    }
    return document | {
        "attainment": score.attainment,
        "pace_attainment": score.pace_attainment,
    }
