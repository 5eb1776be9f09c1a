"""The audit as a page: the answer in sentences, then figures, charts and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from engine.deciding.outcome import Fate
from loadgen.audit import query
from loadgen.audit.account import Account
from loadgen.audit.alternatives import Alternatives
from loadgen.audit.cells import Cell, Harm, rolled_up
from loadgen.audit.periods import DAY_S, HOUR_S, ByTenant, Periods, Span, share, total
from loadgen.audit.sake import Sake, sakes
from loadgen.audit.tables import Written, alternatives_tables, largest, named
from loadgen.reports.html import text
from loadgen.reports.html.chart import Absent, Axis, Chart, Curves, Draw, Line, colour
from loadgen.reports.html.headline import Tile
from loadgen.reports.html.page import Notice, Page, Section
from loadgen.reports.html.text import duration

MOST_LINES = 7  # tenants of a chart; the others are added up
_MORE = 0.02  # a share of those that missed that is larger by less is as large as of all
_MOST_TOLD = 3  # tenants, in sentences
_LEAST_STEPS = 4  # of a chart, in whose halves a drift is looked for; of days there are two
_DRIFT = 0.05  # a part of the work that changes by less is no drift
_REST = "all others"

DEFINITIONS = {
    "on time": "it ended by itself, and met every target: token n by TTFT + (n - 1) TBT, or the "
    "last by TTLT. Shares are of the arrivals that had targets, without those that their callers "
    "left before anything was overdue.",
    "late": "it ended by itself, or its caller left when it was overdue, and missed a target.",
    "expired": "the call's own deadline passed before it ended.",
    "refused": "there was no place for it, or it gave its place to more important work.",
    "relegated": "moved behind the others because its deadline was lost or too dear; still served.",
    "preempted": "its memory was taken for others, and what it held computed again.",
    "missed": "late, expired, refused or failed.",
    "not told": "the log does not say how it ended: it goes on, or the end was lost.",
    "for whose sake": "what the engine did between a request's arrival and its end, by whose work "
    "it was. An iteration is divided among its chunks and streams by what each costs by the log's "
    "own latency profile. That others were served is not yet a wrong: who asked for more than its "
    "part waits for others.",
    "fair share": "of the engine: a tenant's weight over those of all tenants. Who has no weight "
    "shares one weight of 1 with all others that have none.",
    "simulated": "the same arrivals, served by the same scheduler in virtual time, with the log's "
    "own latency profile.",
}


class Head(NamedTuple):
    """What a page says of itself."""

    paths: Sequence[str]
    command: str
    version: str
    written_at: str


def page(head: Head, account: Account, alternatives: Alternatives | None) -> Page:
    """Makes the page of an account of at least one request."""
    whole = _whole(account)
    tables = list(Written(account, head.paths).tables())
    if alternatives is not None:
        tables[1:1] = alternatives_tables(alternatives, head.paths)
    return Page(
        title="Audit of a decision log",
        headline=_headline(whole),
        subtitle=_subtitle(account),
        notices=list(_notices(account)),
        answers=list(answers(account, alternatives)),
        tiles=list(_tiles(account, whole)),
        sections=[Section("Over time", list(_charts(account)))],
        tables=tables,
        facts={
            "command": head.command,
            "log": ", ".join(head.paths),
            "engine": _engine(account),
            "this page by": f"niyama {head.version}",
            "written": head.written_at,
        },
        definitions=DEFINITIONS,
    )


def _whole(account: Account) -> Cell:
    whole = Cell()
    for cell in account.cells.values():
        whole.merge(cell)
    return whole


def _headline(whole: Cell) -> str:
    if whole.attainment is None:
        return f"{_count(whole.num_arrived, 'request')}, none with a target"
    missed = 1 - whole.attainment
    return f"{text.share(missed)} of {_count(whole.num_judged, 'request')} with targets missed them"


def _subtitle(account: Account) -> str:
    return (
        f"{query.instant_text(account.begins_at)} to {query.instant_text(account.ends_at)} UTC "
        f"({duration(account.ends_at - account.begins_at)}); {_engine(account)}"
    )


def _engine(account: Account) -> str:
    last = account.header
    assert last is not None
    return f"{last.model}, policy {last.policy}, niyama {last.version}, profile {last.profile.name}"


def _notices(account: Account) -> Iterator[Notice]:
    if account.num_torn:
        said = f"{_count(account.num_torn, 'line')} cut short by a full disk or a sudden end"
        yield Notice("Not everything was written", f"{said}: what they told is not in this report.")
    if account.num_unknown:
        said = f"{_count(account.num_unknown, 'request')} that arrived before the log begins"
        yield Notice("The log begins in the middle", f"{said} are counted nowhere.")
    if account.num_restarts:
        said = f"{_count(account.num_restarts, 'time')} another engine process went on"
        yield Notice(
            "The engine was begun anew", f"{said}. What was in flight was lost or restarted."
        )


# The answer


def answers(account: Account, alternatives: Alternatives | None) -> Iterator[str]:
    """Yields what somebody who has to answer for it wants to know, a sentence or two for each."""
    whole = _whole(account)
    yield _what_happened(whole)
    yield from _who(account)
    yield from _for_whose_sake(account)
    if alternatives is not None:
        yield from alternatives.sentences()
    yield from _drift(account)


def _what_happened(whole: Cell) -> str:
    said = [
        f"{whole.fates[fate]:,} {words}"
        for fate, words in (
            (Fate.LATE, "were late"),
            (Fate.EXPIRED, "expired"),
            (Fate.REFUSED, "were refused"),
            (Fate.FAILED, "failed"),
            (Fate.CANCELLED, "were left by their callers"),
            (None, "have no end in the log"),
        )
        if whole.fates[fate]
    ]
    moved = (
        f"Whatever came of it, {whole.num(Harm.RELEGATED):,} were relegated and "
        f"{whole.num(Harm.PREEMPTED):,} preempted."
    )
    arrived = f"{_count(whole.num_arrived, 'request')} arrived"
    on_time = f", {whole.fates[Fate.ON_TIME]:,} of them were on time"
    return f"{arrived}{on_time}; {', '.join(said) or 'none came to harm'}. {moved}"


def _who(account: Account) -> Iterator[str]:
    """Says whose requests missed their targets more often than all others'."""
    of_a_tier = {who.tier: set[str]() for who in account.cells}
    for who in account.cells:
        of_a_tier[who.tier].add(who.importance)
    is_more = any(len(importances) > 1 for importances in of_a_tier.values())
    for dimension in ("tenant", "tier", *(["importance"] if is_more else [])):
        found = [
            (getattr(who, dimension), cell)
            for who, cell in rolled_up(account.cells, (dimension,))
            if cell.num_judged
        ]
        if len(found) < 2 or not any(_missed(cell) for _, cell in found):
            continue
        name, most = max(found, key=lambda item: _missed(item[1]))
        rest = Cell()
        for other, cell in found:
            if other != name:
                rest.merge(cell)
        of_missed = _missed(most) / (_missed(most) + _missed(rest))
        of_all = most.num_judged / (most.num_judged + rest.num_judged)
        if of_missed < of_all + _MORE:
            yield f"No {dimension} missed its targets much more often than all others together."
            continue
        yield (
            f"Of those that missed a target {text.share(of_missed)} were of {dimension} "
            f"{named(name)}, which sent {text.share(of_all)} of the requests with targets: "
            f"{text.share(_missed(most) / most.num_judged)} of its own missed them, and "
            f"{text.share(_missed(rest) / rest.num_judged)} of all others'."
        )


def _missed(cell: Cell) -> int:
    return cell.num_judged - cell.fates[Fate.ON_TIME]


def _for_whose_sake(account: Account) -> Iterator[str]:
    """Says what the engine did meanwhile, for all and for the tenants that most came to harm."""
    for _, sake in sakes(account.cells, account.groups, ()):
        yield f"For whose sake: those that came to harm {_meanwhile(sake)}"
    by_tenant = sakes(account.cells, account.groups, ("tenant",))
    for who, sake in by_tenant[:_MOST_TOLD] if len(by_tenant) > 1 else ():
        yield f"Those of tenant {named(who.tenant)} {_meanwhile(sake)}"


def _meanwhile(sake: Sake) -> str:
    suffered = sake.suffered
    if not suffered.num_seen:
        return "were refused, or left, before the engine saw them."
    there = f"were there for {duration(sake.mean(suffered.waited_s))} on average"
    if suffered.num_seen < suffered.count:
        there = f"(the {suffered.num_seen:,} of {suffered.count:,} that the engine saw) {there}"
    own = f"in which the engine worked {duration(sake.mean(sake.own_s))} for their own tenants"
    if not sake.others_s:
        return f"{there}, {own} and for nobody else."
    (tenant, tier), most_s = max(sake.others.items(), key=lambda item: item[1])
    others = f"and {duration(sake.mean(sake.others_s))} for others"
    most = f"{text.share(most_s / sake.others_s)} of that for {named(tenant)} ({tier})"
    less = f"{text.share(sake.less_s / sake.others_s)} was work of less importance than theirs"
    return f"{there}, {own} {others}, {most}; {less}."


def _drift(account: Account) -> Iterator[str]:
    """Says whose part of the work changed most from the first half of the time to the second."""
    periods = account.periods.days if len(account.periods.days) > 1 else account.periods.steps
    numbers = sorted(number for number, each in periods.items() if total(each).arrived)
    if len(numbers) < (2 if periods is account.periods.days else _LEAST_STEPS):
        return
    half = len(numbers) // 2
    first, second = _joined(periods, numbers[:half]), _joined(periods, numbers[half:])
    changes = {
        tenant: _part(second, tenant) - _part(first, tenant) for tenant in {**first, **second}
    }
    tenant = max(changes, key=lambda name: (abs(changes[name]), name))
    if abs(changes[tenant]) < _DRIFT:
        yield "Nobody's part of the engine's work changed by more than 5 points over the log."
        return
    verb = "rose" if changes[tenant] > 0 else "fell"
    yield (
        f"From the first half of the log to the second the part of {named(tenant)} in the engine's "
        f"work {verb} from {text.share(_part(first, tenant))} to "
        f"{text.share(_part(second, tenant))}. Of its requests with targets "
        f"{_missed_of(first, tenant)} missed them in the first half and "
        f"{_missed_of(second, tenant)} in the second, of all others' "
        f"{_missed_of(first, tenant, others=True)} and "
        f"{_missed_of(second, tenant, others=True)}."
    )


def _joined(periods: Mapping[int, ByTenant], numbers: Sequence[int]) -> ByTenant:
    joined: ByTenant = {}
    for number in numbers:
        for tenant, span in periods[number].items():
            joined.setdefault(tenant, Span()).merge(span)
    return joined


def _part(by_tenant: ByTenant, tenant: str) -> float:
    work_s = by_tenant[tenant].work_s if tenant in by_tenant else 0.0
    return share(work_s, total(by_tenant).work_s) or 0.0


def _missed_of(by_tenant: ByTenant, tenant: str, others: bool = False) -> str:
    found = total({name: span for name, span in by_tenant.items() if (name != tenant) == others})
    return f"{found.missed:,} of {found.judged:,}"


# Figures and charts


def _tiles(account: Account, whole: Cell) -> Iterator[Tile]:
    yield Tile(text.share(whole.attainment), "on time", f"of {whole.num_judged:,} with targets")
    for fate in (Fate.LATE, Fate.EXPIRED, Fate.REFUSED):
        yield Tile(f"{whole.fates[fate]:,}", fate.value)
    for harm in (Harm.RELEGATED, Harm.PREEMPTED):
        yield Tile(f"{whole.num(harm):,}", harm.value)
    work_s = sum(account.work)
    busy = share(work_s, work_s + account.idle_s)
    yield Tile(text.share(busy), "engine at work", f"{duration(work_s)} of work")


def _charts(account: Account) -> Iterator[Chart]:
    """Draws work, misses and relegations over time, by tenant."""
    periods = account.periods
    if not periods.steps:
        yield Absent("Over time", "Nothing arrived.")
        return
    order = largest(periods.steps)
    own = order[:MOST_LINES] if len(order) > MOST_LINES + 1 else order
    length_s = float(periods.step_s)

    def work(span: Span) -> float:
        return span.work_s / length_s

    def missed(span: Span) -> float | None:
        return share(span.missed, span.judged)

    def relegated(span: Span) -> float | None:
        return share(span.relegated, span.arrived)

    work_axis = Axis("of the engine's time (%)", is_share=True)
    yield _chart(periods, own, "The engine's work, by tenant", work_axis, work, Draw.STACK)
    missed_axis = Axis("of the arrivals with targets (%)", is_share=True)
    yield _chart(periods, own, "Missed, by tenant", missed_axis, missed)
    yield _chart(periods, own, "Relegated, by tenant", Axis("of the arrivals (%)", True), relegated)


def _chart(
    periods: Periods,
    tenants: Sequence[str],
    title: str,
    y: Axis,
    value: Callable[[Span], float | None],
    draw: Draw = Draw.LINE,
) -> Chart:
    """Draws what tenants had over time; those that are not named are added up."""
    steps = range(min(periods.steps), max(periods.steps) + 1)
    unit, unit_s = ("days", DAY_S) if len(periods.days) > 2 else ("hours", HOUR_S)
    if len(steps) * periods.step_s < 2 * HOUR_S:
        unit, unit_s = "minutes", 60

    def line(index: int, name: str, span_of: Callable[[ByTenant], Span]) -> Line:
        values = ((number, value(span_of(periods.steps.get(number, {})))) for number in steps)
        points = [
            ((number - steps[0]) * periods.step_s / unit_s, each)
            for number, each in values
            if each is not None
        ]
        return Line(name, points, colour(index))

    def own(tenant: str) -> Callable[[ByTenant], Span]:
        return lambda by_tenant: by_tenant.get(tenant, Span())

    def rest(by_tenant: ByTenant) -> Span:
        return total({name: span for name, span in by_tenant.items() if name not in tenants})

    lines = [line(i, named(tenant), own(tenant)) for i, tenant in enumerate(tenants)]
    if any(name not in tenants for by_tenant in periods.steps.values() for name in by_tenant):
        lines.append(line(len(lines), _REST, rest))
    x = Axis(f"time since {query.instant_text(steps[0] * periods.step_s)} UTC ({unit})")
    lines = [each for each in lines if each.points]
    if not lines:
        return Absent(title, "Nobody had a target.")
    return Curves(title, x, y, lines, draw=draw, group="time", is_wide=draw is Draw.STACK)


def _count(number: int, noun: str) -> str:
    """Writes how many there are of something."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
