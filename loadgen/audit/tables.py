"""The tables of the audit, each row with what it was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from engine.deciding.outcome import Fate
from loadgen.audit import query
from loadgen.audit.account import Account
from loadgen.audit.alternatives import Alternatives, by_tenant, by_tier, whole
from loadgen.audit.cells import (
    NAMELESS,
    Cell,
    Example,
    Harm,
    Suffered,
    Who,
    rolled_up,
)
from loadgen.audit.periods import ByTenant, Span, day_text, share, total
from loadgen.audit.query import Condition
from loadgen.audit.sake import Sake, sakes
from loadgen.reports.html import text
from loadgen.reports.html.text import DASH, Trace, WrittenTable, duration

MOST_ROWS = 30
MOST_OTHERS = 3  # for whose sake somebody waited, by name
MOST_COLUMNS = 5  # tenants of a table of periods

_FATES = {
    Fate.ON_TIME: "on time",
    Fate.LATE: "late",
    Fate.EXPIRED: "expired",
    Fate.REFUSED: "refused",
    Fate.FAILED: "failed",
    Fate.CANCELLED: "left by its caller",
    Fate.BEST_EFFORT: "best effort",
    None: "not told",
}
_SAKE_HEADER = (
    "requests",
    "seen",
    "there for",
    "own work",
    "work of others",
    "that of less importance",
    "equal",
    "more",
    "idle",
    f"the {MOST_OTHERS} largest of others",
)
_SAKE_NOTE = (
    "Requests that were late, expired, refused, relegated or preempted, and how many of them the "
    "engine had seen. Means over these: how long they were there, and what the engine did in that "
    "time. Own work is that of their tenants, themselves included."
)
_ALTERNATIVES_NOTE = (
    "Shares on time of the requests with targets. What would have been is to be compared with what "
    "is simulated as configured, which differs from the log by what a simulation does not know."
)


def named(name: str) -> str:
    """Writes a name of a tenant or application."""
    return name or NAMELESS


class Written:
    """Writes the tables of an account whose log is in the files `paths`."""

    def __init__(self, account: Account, paths: Sequence[str]) -> None:
        self._account = account
        self._paths = paths

    def tables(self) -> Iterator[WrittenTable]:
        """Yields them in the order in which they are read."""
        account = self._account
        for dimension in ("tenant", "tier", "importance", "application"):
            if dimension == "tenant" or _differs(account.cells, dimension):
                yield self._fates(dimension)
        yield from filter(
            lambda table: table.rows,
            (
                self._sakes("For whose sake, by tenant and tier", ("tenant", "tier")),
                self._by_harm(),
                self._sakes("For whose sake, by application", ("application",)),
                self._sakes("For whose sake, by importance", ("importance",)),
            ),
        )
        periods = account.periods
        yield self._periods("By day (UTC)", periods.days, "day", day_text)
        yield self._periods("By hour of the day (UTC)", periods.hours, "hour", str)

    # Who

    def _fates(self, dimension: str) -> WrittenTable:
        """Returns what became of every arrival, by one dimension."""
        whole, traces = Cell(), []
        rows: list[list[str]] = []
        found = list(rolled_up(self._account.cells, (dimension,)))
        found.sort(key=lambda item: (-item[1].num(Harm.ANY), -item[1].num_arrived, item[0]))
        for who, cell in found:
            whole.merge(cell)
            if len(rows) < MOST_ROWS:
                name = getattr(who, dimension)
                rows.append(_fate_row(named(name), cell))
                traces.append(
                    self._trace(cell.harms.get(Harm.ANY), None, Condition(dimension, name))
                )
        rows.append(_fate_row("all", whole))
        traces.append(self._trace(whole.harms.get(Harm.ANY), None))
        left_out = len(found) + 1 - len(rows)
        note = f"{left_out} more are in the JSON report and in the sum." if left_out else ""
        header = [dimension, "arrived", *_FATES.values(), "share on time"]
        header += ["relegated", "preempted"]
        title = f"What became of every arrival, by {dimension}"
        return WrittenTable(title, header, rows, note, traces)

    # For whose sake

    def _sakes(self, title: str, by: Sequence[str]) -> WrittenTable:
        account = self._account
        found = sakes(account.cells, account.groups, by)
        if len(by) == 1 and len(found) < 2:
            found = []
        rows, traces = [], []
        for who, sake in found[:MOST_ROWS]:
            names = [getattr(who, name) for name in by]
            rows.append([" / ".join(map(named, names)), *_sake_row(sake)])
            conditions = [Condition(*each) for each in zip(by, names, strict=True)]
            traces.append(self._trace(sake.suffered, Harm.ANY, *conditions))
        return WrittenTable(title, [" / ".join(by), *_SAKE_HEADER], rows, _SAKE_NOTE, traces)

    def _by_harm(self) -> WrittenTable:
        account, rows, traces = self._account, [], []
        for harm in Harm:
            for _, sake in sakes(account.cells, account.groups, (), harm):
                rows.append([harm.value, *_sake_row(sake)])
                traces.append(self._trace(sake.suffered, harm))
        header = ["came to", *_SAKE_HEADER]
        note = "A request may have come to several of these; any counts it once."
        return WrittenTable("For whose sake, by what they came to", header, rows, note, traces)

    # When

    def _periods(
        self, title: str, periods: Mapping[int, ByTenant], name: str, write: Callable[[int], str]
    ) -> WrittenTable:
        tenants = largest(periods)[:MOST_COLUMNS]
        header = [name, "arrived", "missed", "relegated", "engine time"]
        for tenant in tenants:
            who = named(tenant)
            header += [f"{who}: of the work", f"{who}: missed", f"{who}: relegated"]
        rows, traces = [], []
        for number, period in sorted(periods.items()):
            rows.append(_period_row(write(number), period, tenants))
            traces.append(self._trace(None, None, Condition(name, write(number))))
        note = (
            "Missed: late, expired, refused or failed, of the arrivals of that time with targets. "
            "Relegated: of all arrivals. Of the work: of the engine's time, without that in which "
            "it was idle."
        )
        return WrittenTable(title, header, rows, note, traces)

    def _trace(self, suffered: Suffered | None, harm: Harm | None, *conditions: Condition) -> Trace:
        """Returns how a row is found again: those that suffered most, and the command that lists
        the requests of which the conditions hold and that came to a kind of harm (None: whatever).
        """
        came_to = [] if harm is None else [Condition("harm", harm.value)]
        command = query.command(self._paths, [*conditions, *came_to])
        examples = [] if suffered is None else sorted(suffered.examples, reverse=True)
        return Trace([_told(each) for each in examples], command)


def largest(periods: Mapping[int, ByTenant]) -> list[str]:
    """Returns the tenants, those first that had most of the engine's time."""
    whole: dict[str, Span] = {}
    for period in periods.values():
        for tenant, span in period.items():
            whole.setdefault(tenant, Span()).merge(span)
    return sorted(whole, key=lambda tenant: (-whole[tenant].work_s, tenant))


def _differs(cells: Mapping[Who, Cell], dimension: str) -> bool:
    return len({getattr(who, dimension) for who in cells}) > 1


def _fate_row(name: str, cell: Cell) -> list[str]:
    return [
        name,
        f"{cell.num_arrived:,}",
        *(f"{cell.fates[fate]:,}" for fate in _FATES),
        text.share(cell.attainment),
        f"{cell.num(Harm.RELEGATED):,}",
        f"{cell.num(Harm.PREEMPTED):,}",
    ]


def _sake_row(sake: Sake) -> list[str]:
    most = sorted(sake.others.items(), key=lambda item: -item[1])[:MOST_OTHERS]
    sums = (sake.suffered.waited_s, sake.own_s, sake.others_s)
    parts = (sake.less_s, sake.equal_s, sake.more_s, sake.idle_s)
    names = (
        f"{named(tenant)} / {tier}: {duration(sake.mean(seconds))}"
        for (tenant, tier), seconds in most
    )
    return [
        f"{sake.suffered.count:,}",
        f"{sake.suffered.num_seen:,}",
        *(duration(sake.mean(seconds)) for seconds in (*sums, *parts)),
        ", ".join(names) or DASH,
    ]


def _period_row(name: str, period: ByTenant, tenants: Iterable[str]) -> list[str]:
    together = total(period)
    row = [
        name,
        f"{together.arrived:,}",
        text.share(share(together.missed, together.judged)),
        text.share(share(together.relegated, together.arrived)),
        duration(together.work_s),
    ]
    for tenant in tenants:
        span = period.get(tenant, Span())
        row += [
            text.share(share(span.work_s, together.work_s)),
            text.share(share(span.missed, span.judged)),
            text.share(share(span.relegated, span.arrived)),
        ]
    return row


def _told(example: Example) -> str:
    """Writes a request by which a figure can be traced."""
    if example.num > 1:
        return f"{example.num:,} told together: {example.ended or example.arrived}"
    who = f" of {example.tenant}" if example.tenant else ""
    end = f" to {example.ended}" if example.ended else ""
    lived = duration(example.waited_s)
    return f"{example.request_id}{who}, there for {lived}: {example.arrived}{end}"


def alternatives_tables(alternatives: Alternatives, paths: Sequence[str]) -> list[WrittenTable]:
    """Returns what tenants and tiers had, and would have had."""
    was, simulated = alternatives.was, alternatives.simulated
    in_order, window = alternatives.in_order, _window(alternatives)
    tenants = sorted({tenant for tenant, _ in was}, key=lambda name: -alternatives.worse_by(name))
    tables = []
    for dimension, names, of, alone in (
        ("tenant", tenants, by_tenant, alternatives.alone_of),
        ("tier", sorted({tier for _, tier in was}), by_tier, alternatives.alone_by_tier),
    ):
        rows = [
            [
                named(name),
                *([text.share(alternatives.fair.get(name))] if dimension == "tenant" else []),
                text.share(of(was, name)),
                text.share(of(simulated, name)),
                text.share(of(in_order, name)),
                text.share(alone(name)),
            ]
            for name in names
        ]
        rows.append(["all", *([DASH] if dimension == "tenant" else [])])
        rows[-1] += [text.share(whole(each)) for each in (was, simulated, in_order)] + [DASH]
        traces = [
            Trace([], query.command(paths, [*window, Condition(dimension, name)])) for name in names
        ]
        traces.append(Trace([], query.command(paths, window)))
        header = [dimension, *(["fair share"] if dimension == "tenant" else []), "in the log"]
        header += [
            "simulated as configured",
            "first come first served",
            "with its fair share alone",
        ]
        title = f"On time, and what would have been, by {dimension}"
        tables.append(WrittenTable(title, header, rows, _ALTERNATIVES_NOTE, traces))
    return tables


def _window(alternatives: Alternatives) -> list[Condition]:
    return [
        Condition("from", query.instant_text(alternatives.begins_at)),
        Condition("to", query.instant_text(alternatives.ends_at)),
    ]
