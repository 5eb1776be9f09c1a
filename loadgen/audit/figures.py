"""The audit as JSON. loadgen/README.md documents the schema, whose version `schema` carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loadgen.audit.account import Account, Group
from loadgen.audit.alternatives import Alternatives
from loadgen.audit.cells import FATES, Cell, Harm, Suffered, Who, result_of
from loadgen.audit.periods import ByTenant, day_text

SCHEMA = "niyama.audit/1"

Document = dict[str, Any]


def to_json(paths: Sequence[str], account: Account, alternatives: Alternatives | None) -> Document:
    """Returns everything that the report is made of."""
    last, periods = account.header, account.periods
    assert last is not None
    return {
        "schema": SCHEMA,
        "log": list(paths),
        "begins_unix_s": account.begins_at,
        "ends_unix_s": account.ends_at,
        "engine": {"model": last.model, "policy": last.policy, "version": last.version},
        "num_entries": account.num_entries,
        "num_torn": account.num_torn,
        "num_unknown": account.num_unknown,
        "num_restarts": account.num_restarts,
        "idle_s": account.idle_s,
        "work": _served(account.work, account.groups),
        "cells": [_cell(who, cell, account.groups) for who, cell in sorted(account.cells.items())],
        "by_day": [
            {"day": day_text(number), "tenants": _period(each)}
            for number, each in sorted(periods.days.items())
        ],
        "by_hour": [
            {"hour": number, "tenants": _period(each)}
            for number, each in sorted(periods.hours.items())
        ],
        "over_time": [
            {
                "from_unix_s": number * periods.step_s,
                "for_s": periods.step_s,
                "tenants": _period(each),
            }
            for number, each in sorted(periods.steps.items())
        ],
        "alternatives": None if alternatives is None else alternatives.to_json(),
    }


def _cell(who: Who, cell: Cell, groups: Mapping[Group, int]) -> Document:
    fates = {result_of(fate): cell.fates[fate] for fate in FATES}
    harms = {harm.value: _suffered(cell.harms[harm], groups) for harm in Harm if harm in cell.harms}
    return {**who._asdict(), "num_arrived": cell.num_arrived, "results": fates, "harms": harms}


def _suffered(suffered: Suffered, groups: Mapping[Group, int]) -> Document:
    return {
        "count": suffered.count,
        "num_seen": suffered.num_seen,
        "waited_s": suffered.waited_s,
        "meanwhile": _served(suffered.served, groups),
        "examples": [each._asdict() for each in sorted(suffered.examples, reverse=True)],
    }


def _served(served: Sequence[float], groups: Mapping[Group, int]) -> list[Document]:
    """Returns seconds of the engine's time by whose work they were."""
    return [
        {**group._asdict(), "work_s": served[number]}
        for group, number in groups.items()
        if number < len(served) and served[number]
    ]


def _period(by_tenant: ByTenant) -> Document:
    return {
        tenant: {
            "arrived": span.arrived,
            "judged": span.judged,
            "missed": span.missed,
            "relegated": span.relegated,
            "work_s": span.work_s,
        }
        for tenant, span in sorted(by_tenant.items())
    }
