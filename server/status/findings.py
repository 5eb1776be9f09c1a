"""What is wrong, in plain words: the first lines of the status page.

Judged from what metrics have said lately and from what the server knows of its parts. It is a
function of these alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from statistics import median
from types import MappingProxyType
from typing import NamedTuple

from engine.deciding.outcome import MISSES
from engine.tiers import OTHER_TENANTS
from server.status.history import Window

RECENT_S = 300.0  # of attainment
LATELY_S = 60.0  # of refusals
SPEED_S = 30.0
SLOW = 0.7  # of the calibrated speed; a little less is usual where others use the same cores
VERY_SLOW = 0.5
ENOUGH = 0.99  # of a tier's calls on time
POOR = 0.9
DOMINANT = 0.5  # of all work, from one of several tenants

MISSED = tuple(fate.value for fate in MISSES)


class Phase(Enum):
    """How far the service has come, or what has befallen its engine."""

    STARTING = "starting"
    SERVING = "serving"
    SILENT = "silent"
    LOST = "lost"
    DRAINING = "draining"


class Parts(NamedTuple):
    """What the server knows of its parts: `reason` is why the engine was lost last, and `too_tight`
    has why tiers cannot be kept, by their names in the configuration file.
    """

    phase: Phase
    reason: str = ""
    front_ends: int = 1
    serving: int = 1  # of the front ends
    too_tight: Mapping[str, str] = MappingProxyType({})

    @property
    def is_ready(self) -> bool:
        return self.phase is Phase.SERVING and self.serving > 0


class Level(Enum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"  # look at it
    BAD = "bad"  # callers feel it
    DOWN = "down"  # nobody is served


@dataclass(frozen=True, slots=True)
class Finding:
    """One line, a sentence that says more, and what to do."""

    level: Level
    line: str
    detail: str = ""
    do: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """What became of the calls of one tier, tenant or all, by result."""

    by_result: dict[str, float]

    @property
    def missed(self) -> float:
        return sum(self.by_result.get(result, 0.0) for result in MISSED)

    @property
    def judged(self) -> float:
        """Returns how many of them had targets and were not cancelled."""
        return self.by_result.get("on_time", 0.0) + self.missed

    @property
    def attainment(self) -> float | None:
        """Returns the share of them that was on time; None where there are none."""
        return self.by_result.get("on_time", 0.0) / self.judged if self.judged else None


def scores(window: Window, label: str, seconds: float | None = None) -> dict[str, Score]:
    """Returns what became of the calls of the last seconds (None: of all since the start), by tier
    or tenant.
    """
    name = "niyama_requests_total"
    found: dict[str, dict[str, float]] = {}
    for own, n in window.each(name) if seconds is None else window.each_gained(name, seconds):
        by_result = found.setdefault(own.get(label, ""), {})
        by_result[own["result"]] = by_result.get(own["result"], 0.0) + n
    return {value: Score(by_result) for value, by_result in found.items()}


def findings(parts: Parts, window: Window) -> list[Finding]:
    """Returns what is to be said, the worst first; a line that all is well where nothing else
    is.
    """
    found = [*_parts(parts)]
    if parts.phase is not Phase.STARTING:
        found += [*_slow(window), *_overloaded(window), *_failing(window)]
        if not any(each.level in (Level.WARN, Level.BAD) for each in found):
            found += _late(window)
        found += [*_not_read(window), *_too_tight(parts.too_tight)]
    if not found:
        found = [_well(window)]
    order = list(Level)[::-1]
    return sorted(found, key=lambda each: order.index(each.level))


def _parts(parts: Parts) -> Iterator[Finding]:
    phase = parts.phase
    if phase is Phase.STARTING:
        yield Finding(
            Level.DOWN,
            "no engine yet: it is starting",
            "The first start of a model measures and compiles it, which takes a minute or two.",
            "Wait; where it takes longer, the server's log says why.",
        )
    elif phase is Phase.LOST:
        yield Finding(
            Level.DOWN,
            "no engine",
            f"It was lost: {parts.reason or 'nobody knows why'}.",
            "It is started again by itself. Where it is lost again, the log line `engine lost` has"
            " the reason; look for the kernel's out-of-memory killer.",
        )
    elif phase is Phase.SILENT:
        yield Finding(
            Level.DOWN,
            "the engine gives no sign of life",
            "It has stopped, or is at one iteration for very long. New calls end UNAVAILABLE.",
            "Wait: it is heard again, or else killed and replaced by itself.",
        )
    elif phase is Phase.DRAINING:
        yield Finding(
            Level.WARN,
            "draining: no new calls are taken",
            "Somebody asked the server to end (SIGTERM).",
            "Running calls get --drain-s seconds; then it ends.",
        )
    if phase is not Phase.DRAINING and phase is not Phase.STARTING:
        lost = parts.front_ends - parts.serving
        if phase is Phase.SERVING and lost > 0:
            yield Finding(
                Level.WARN if parts.serving else Level.DOWN,
                f"{lost} of {parts.front_ends} front ends do not serve",
                do="They are started again by themselves; the log line `front end lost` says why.",
            )


def _not_read(window: Window) -> Iterator[Finding]:
    if window.value("niyama_config_last_reload_successful") == 0:
        yield Finding(
            Level.WARN,
            "configuration not read: what was there before holds",
            "After SIGHUP the file of --config, or the operator's token, was no good.",
            "The log line `configuration not read` names its line; --check-config does, too.",
        )


def _too_tight(too_tight: Mapping[str, str]) -> Iterator[Finding]:
    if too_tight:
        yield Finding(
            Level.WARN,
            f"{', '.join(too_tight)} cannot be kept on this machine",
            " ".join(f"{name}: {why}." for name, why in too_tight.items()),
            "Raise these targets in the configuration file and send the server SIGHUP. Until then"
            " whoever asks for them is late.",
        )


def _slow(window: Window) -> Iterator[Finding]:
    ratio = speed(window)
    if ratio is None or ratio >= SLOW:
        return
    yield Finding(
        Level.BAD if ratio < VERY_SLOW else Level.WARN,
        f"machine slow: {_percent(ratio)} of its calibrated speed",
        "Iterations take longer than the profile of this machine says, whatever the load.",
        "Look for what else uses its cores or GPU (top, nvidia-smi), for a limit on the container,"
        " for throttling. Headroom below is told for the machine as it is now.",
    )


def speed(window: Window) -> float | None:
    """Returns the speed of the machine against its calibration, as of late."""
    if not window.rows:
        return None
    until = window.rows[-1].at - SPEED_S
    told = window.series("niyama_speed_ratio", [row for row in window.rows if row.at >= until])
    known = [ratio for ratio in told if ratio is not None]
    return median(known) if known else None


def _overloaded(window: Window) -> Iterator[Finding]:
    demand = window.value("niyama_demand_ratio") or 0.0
    relegated = window.value("niyama_sequences", state="relegated") or 0.0
    refused = window.gained_by("niyama_refused_total", LATELY_S, "reason")
    num_refused = sum(n for reason, n in refused.items() if reason != "draining")
    if demand <= 1.0 and not relegated and not num_refused:
        return
    parts = []
    if demand > 1.0:
        parts.append(f"{demand:.2g} s of work arrive per second")
    if relegated:
        parts.append(f"{_count(relegated, 'request')} relegated")
    if num_refused:
        parts.append(f"{num_refused:.0f} refused in the last minute")
    missed, _ = _sums(window, RECENT_S)
    is_more_than_can_be_done = demand > 1.0 or num_refused
    what = "overloaded" if is_more_than_can_be_done else "behind, as in a burst"
    yield Finding(
        Level.BAD if missed else Level.WARN,
        f"{what}: {', '.join(parts)}",
        " ".join(filter(None, (_who(window), _worst(window)))),
        "Have the largest sender slow down, lower the importance of what can wait, or add"
        " capacity. Until then the important are served first."
        if is_more_than_can_be_done
        else "Less arrives than the engine can do, so it should catch up; where it does not,"
        " Explain one of those relegated.",
    )


def _who(window: Window) -> str:
    """Says who sends most of the work, where that is one of several."""
    shares = work_shares(window)
    if len(shares) < 2:
        return ""
    tenant = max(shares, key=lambda name: shares[name])
    if shares[tenant] < DOMINANT:
        return ""
    name = "Tenants without a name of their own" if tenant == OTHER_TENANTS else f"Tenant {tenant}"
    return f"{name} sent {_percent(shares[tenant])} of the work of the last minutes."


def work_shares(window: Window) -> dict[str, float]:
    """Returns who sent which share of the work lately: by engine time where that is known, else by
    calls.
    """
    for name in ("niyama_work_seconds_total", "niyama_requests_total"):
        gained = window.gained_by(name, RECENT_S, "tenant")
        total = sum(gained.values())
        if total > 0:
            return {tenant: gain / total for tenant, gain in gained.items() if gain}
    return {}


def _worst(window: Window) -> str:
    """Says which tiers miss their targets, the worst first."""
    poor = {
        tier: score
        for tier, score in scores(window, "tier", RECENT_S).items()
        if score.attainment is not None and score.attainment < ENOUGH
    }
    order = sorted(poor, key=lambda tier: poor[tier].attainment or 0.0)
    told = [f"{tier} {_percent(poor[tier].missed / poor[tier].judged)}" for tier in order[:4]]
    return f"Not on time in the last five minutes: {', '.join(told)}." if told else ""


def _failing(window: Window) -> Iterator[Finding]:
    failed = window.gained("niyama_requests_total", RECENT_S, result="failed")
    if failed:
        yield Finding(
            Level.BAD,
            f"failing: {_count(failed, 'call')} in the last five minutes",
            "They ended by no fault of their callers.",
            "The log's `call` lines have the error of each.",
        )


def _late(window: Window) -> Iterator[Finding]:
    missed, judged = _sums(window, RECENT_S)
    if not judged or not (worst := _worst(window)):
        return
    is_over = not _sums(window, LATELY_S)[0]
    line = f"late: {missed:.0f} of {_count(judged, 'call')} in the last five minutes"
    peak = _peak(window)
    told = f"Up to {peak:.2g} s of work arrived per second." if peak > 1.0 else ""
    yield Finding(
        Level.BAD if missed / judged > 1 - POOR and not is_over else Level.WARN,
        f"{line}, none in the last" if is_over else line,
        " ".join(filter(None, (told, _who(window) if told else "", worst))),
        "The latest decisions below have the reasons, and Explain tells the story of each."
        if told
        else "The load has just changed, or the forecast errs: the latest decisions below have the"
        " reasons, and Explain tells the story of each.",
    )


def _sums(window: Window, seconds: float) -> tuple[float, float]:
    """Returns how many calls of the last seconds missed a target, and of how many that had one."""
    tiers = scores(window, "tier", seconds).values()
    return sum(score.missed for score in tiers), sum(score.judged for score in tiers)


def _peak(window: Window) -> float:
    """Returns the most work that has arrived per second, of late."""
    rows = [row for row in window.rows if row.at >= window.rows[-1].at - RECENT_S]
    return max((ratio or 0.0 for ratio in window.series("niyama_demand_ratio", rows)), default=0.0)


def _well(window: Window) -> Finding:
    missed, judged = _sums(window, RECENT_S)
    if not judged:
        return Finding(Level.OK, "all on time", "Nobody with targets has called lately.")
    on_time = f"{judged - missed:.0f} of {_count(judged, 'call')}"
    return Finding(Level.OK, "all on time", f"In the last five minutes {on_time} were on time.")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _count(number: float, noun: str) -> str:
    return f"{number:.0f} {noun}{'' if number == 1 else 's'}"
