"""A summary as JSON. The schema is documented in loadgen/README.md; `schema` carries its version.

Durations are float seconds, rates per second, shares between 0 and 1, null where there is none.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from loadgen.score import Score
from loadgen.summary import Summary

SCHEMA = "niyama.loadgen/1"


def to_json(summary: Summary, arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments`: what the run was asked for, so that it can be asked for again."""
    return {
        "schema": SCHEMA,
        "arguments": arguments,
        "target": _target(summary),
        "end": summary.end.value,
        "problem": summary.problem,
        "invalid": summary.invalid,
        "window": dataclasses.asdict(summary.window),
        "requested_rps": summary.requested_rps,
        "achieved_rps": summary.achieved_rps,
        "lag": dataclasses.asdict(summary.lag),
        "num_abandoned": summary.num_abandoned,
        "fairness": summary.fairness,
        "long_prompt_tokens": summary.long_prompt_tokens,
        "errors": [{"error": error, "count": count} for error, count in summary.errors],
        "total": _score(summary.total),
        **{
            name: [_score(each) for each in getattr(summary, name)]
            for name in ("by_tier", "by_importance", "by_tenant", "by_prompt")
        },
    }


def write(document: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _target(summary: Summary) -> dict[str, Any]:
    target = summary.target
    return {
        "name": target.name,
        "model": target.model,
        "policy": target.policy,
        "tiers": [
            {
                "name": tier.name,
                "ttft_s": tier.targets.ttft,
                "tbt_s": tier.targets.tbt,
                "ttlt_s": tier.targets.ttlt,
                "importance": tier.importance.value,
            }
            for tier in target.tiers
        ],
    }


def _score(score: Score) -> dict[str, Any]:
    document = dataclasses.asdict(score)
    for name in ("ttft", "tbt", "ttlt"):
        document[f"{name}_s"] = getattr(score, name)._asdict()
        del document[name]
    return document | {
        "attainment": score.attainment,
        "pace_attainment": score.pace_attainment,
    }
