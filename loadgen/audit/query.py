"""Which requests are meant by a figure: conditions such as `tenant=acme` and `result=late`, all of
which hold. Every row of the report says by which it is found.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from loadgen.audit.account import Ended
from loadgen.audit.cells import DIMENSIONS, FATES, Harm, Who, result_of
from loadgen.audit.periods import DAY_S, HOUR_S, day_text

_TIMES = {"from": "at or after", "to": "before"}
NAMES = (*DIMENSIONS, "result", "harm", "day", "hour", *_TIMES)


class Condition(NamedTuple):
    """One thing that holds of a request: a name of NAMES, and the value it is to have."""

    name: str
    value: str

    def __str__(self) -> str:
        return f"{self.name}={self.value}"

    def holds(self, ended: Ended, who: Who) -> bool:
        """Says whether it holds of a request, which is counted as `who`."""
        arrived_at = ended.logged.unix_s
        if self.name in DIMENSIONS:
            return bool(getattr(who, self.name) == self.value)
        if self.name in _TIMES:
            instant = parse_instant(self.value)
            return arrived_at >= instant if self.name == "from" else arrived_at < instant
        match self.name:
            case "result":
                return result_of(ended.fate) == self.value
            case "harm":
                return self.value in ended.harms
            case "day":
                return day_text(int(arrived_at) // DAY_S) == self.value
        return int(arrived_at) // HOUR_S % 24 == int(self.value)


def parse_condition(text: str) -> Condition:
    """Reads NAME=VALUE. Raises ValueError."""
    name, equals, value = text.partition("=")
    if not equals or name not in NAMES:
        raise ValueError(f"{text!r} is not NAME=VALUE with a name of {', '.join(NAMES)}")
    check: Callable[[str], Any] | None = _CHECKS.get(name)
    if check is not None:
        check(value)
    return Condition(name, value)


def parse_instant(text: str) -> float:
    """Reads an instant such as 2026-11-30T08:00:00 (UTC unless it says otherwise), as Unix time.
    Raises ValueError.
    """
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an instant such as 2026-11-30T08:00:00") from None
    return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()


def instant_text(unix_s: float) -> str:
    """Writes an instant in UTC, to the second, such as 2026-11-30T08:00:00."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _one_of(known: Iterable[str]) -> Callable[[str], None]:
    names = list(known)

    def check(text: str) -> None:
        if text not in names:
            raise ValueError(f"{text!r} is none of {', '.join(names)}")

    return check


def _check_day(text: str) -> None:
    try:
        datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise ValueError(f"{text!r} is not a day such as 2026-11-30") from None


_CHECKS: dict[str, Callable[[str], Any]] = {
    "result": _one_of(map(result_of, FATES)),
    "harm": _one_of(Harm),
    "hour": _one_of(map(str, range(24))),
    "day": _check_day,
    "from": parse_instant,
    "to": parse_instant,
}


def command(paths: Sequence[str], conditions: Iterable[Condition]) -> str:
    """Returns the command that lists the requests for which all conditions hold."""
    where = [part for each in conditions for part in ("--where", str(each))]
    return shlex.join(["python", "-m", "loadgen.audit", *paths, *where])


def to_json(ended: Ended, who: Who) -> dict[str, Any]:
    """Returns a request as a line of the list."""
    logged = ended.logged
    return {
        "request_id": logged.request_id,
        "tenant": logged.tenant,
        "tier": who.tier,
        "application": logged.application,
        "importance": who.importance,
        "result": result_of(ended.fate),
        "reason": logged.reason,
        "relegated": ended.relegated,
        "preempted": ended.preempted,
        "arrived_unix_s": logged.unix_s,
        "waited_s": round(ended.waited_s, 6),
        "arrived": str(logged.place),
        "ended": None if ended.place is None else str(ended.place),
        "count": logged.count,
    }
