"""The report as a value: a headline, notices, figures, charts and the facts of the run, in the
order in which they are read. `loadgen.reports.html.document` makes a page of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from platform import python_version
from typing import NamedTuple

from loadgen.reports.html.chart import Chart
from loadgen.reports.html.headline import Tile, headline, tiles
from loadgen.reports.html.late import who_was_late
from loadgen.reports.html.loads import over_loads, ranking
from loadgen.reports.html.runs import View, has_loads, tier_targets, views
from loadgen.reports.html.shares import attainment, distributions
from loadgen.reports.html.text import WrittenTable, duration, targets_text, written
from loadgen.reports.html.timeline import NOT_TOLD, over_time
from loadgen.reports.tables import (
    against_log,
    called,
    cold_start,
    errors_table,
    portions,
    promises_by_run,
    promises_by_tier,
    replayed_from,
    runs_table,
    score_tables,
    worst_off,
)
from loadgen.scoring.capacity import Capacity
from loadgen.scoring.criterion import MEASURED
from loadgen.scoring.modes import Measurement
from loadgen.targets.target import End

DEFINITIONS = {
    "late": "not on time: a token after its deadline, or the request rejected, failed, timed out "
    "or unfinished. Every arrival counts.",
    "on time": "every token came, token n by TTFT + (n - 1) TBT, or the last by TTLT.",
    "on pace": "on time, and no gap between two tokens longer than TBT. A server with niyama lets "
    "single gaps be longer where there is slack, up to the longest gap (`--max-gap`) of the tier.",
    "TTFT, TTLT": "from the scheduled instant of a request to its first, its last token.",
    "TBT": "each gap between two neighbouring tokens.",
    "goodput": "requests on time per second.",
    "backlog growth": "how many more tokens wait late in the run than early, as a share of those "
    "that arrived between; below 0 where fewer do.",
    "promises broken": "of the requests that were told at admission that they would be on time, "
    "the share that were late. Who was refused at once was told nothing.",
    "late foretold": "recall: of the late requests that were told something, the share that were "
    "told so. Were late: precision, the share of those that were told so.",
    "fair share": "of the engine: a tenant's weight over those of all tenants that sent something. "
    "Offered and received are parts of all prompt and output tokens, received within the measured "
    "part.",
    "on time alone": "what a tenant's requests have with its fair share of the engine alone: as if "
    "all tenants were like it. Worse by: how much less it had in this run.",
    "without history": "of the cold start: arrived before five outputs of its application (or "
    "tier) had ended in this run, so that the length of its own was guessed from others.",
    "relegated": "moved behind the others because its deadline was lost or too dear; still served.",
}
TITLES = {
    "run": "Load run",
    "sweep": "Sweep over loads",
    "find-capacity": "Search for capacity",
    "find-replicas": "Search for the fewest engines",
    "compare": "Comparison",
}


class Asked(NamedTuple):
    """What was asked for, and by what. `max_misses` is the late share that is marked. `made_from`
    names the file of records that a report was made from again, "" where the runs made it.
    """

    mode: str
    command: str
    seed: int | None  # None: not known
    max_misses: float
    versions: Mapping[str, str]
    written_at: str
    made_from: str = ""


def server_versions(runs: Sequence[Measurement]) -> dict[str, str]:
    """Returns which software served the runs, as `Asked.versions` has it; nothing where no target
    said it.
    """
    versions = dict.fromkeys(filter(None, (run.summary.target.version for run in runs)))
    return {"server": " and ".join(versions)} if versions else {}


def versions(runs: Sequence[Measurement]) -> dict[str, str]:
    """Returns which software made these runs and their report, as `Asked.versions` has it."""
    ours = {name: version(name) for name in ("niyama", "grpcio")}
    return ours | server_versions(runs) | {"Python": python_version()}


class Notice(NamedTuple):
    """Something that the reader must know before the figures."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Section:
    """Charts under a heading. With a `choice` it is shown only while that load is chosen."""

    title: str
    charts: Sequence[Chart]
    choice: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that is shown."""

    title: str
    headline: str
    subtitle: str
    notices: Sequence[Notice] = ()
    answers: Sequence[str] = ()  # sentences, before any figure
    tiles: Sequence[Tile] = ()
    sections: Sequence[Section] = ()
    choices: Sequence[str] = ()  # loads, of which one is looked at
    chosen: str = ""  # at first
    tables: Sequence[WrittenTable] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    definitions: Mapping[str, str] = field(default_factory=lambda: DEFINITIONS)


def page(
    asked: Asked,
    runs: Sequence[Measurement],
    capacities: Mapping[str, Capacity] | None = None,
    replicas: Mapping[str, int] | None = None,
) -> Page:
    """Makes the page of at least one run. `capacities` and `replicas` are what searches found, by
    contender ("" for the only one). Of a search for replicas the runs that it found are shown.
    """
    found = capacities or {}
    fewest = {f"{who} {count} x".strip() for who, count in (replicas or {}).items()}
    told = [run for run in runs if run.name in fewest] or runs
    shown = views(told, found.values())
    return Page(
        title=TITLES[asked.mode],
        headline=_engines(replicas) if replicas else headline(runs, found, asked.max_misses),
        subtitle=_subtitle(runs),
        notices=[*_made_again(asked), *_notices(runs)],
        answers=[] if found or replicas or has_loads(runs) else list(who_was_late(runs)),
        tiles=tiles(told, found, asked.max_misses),
        sections=[*_over_all(asked, runs, found), *_of_views(shown, asked)],
        choices=[view.load for view in shown] if len(shown) > 1 else [],
        chosen=_most_telling(shown, asked.max_misses),
        tables=list(_tables(runs)),
        facts=_facts(asked, runs),
    )


def _engines(replicas: Mapping[str, int]) -> str:
    """Says how many engines were found to serve the load."""
    return "; ".join(
        f"{who}{': ' * bool(who)}{count} {'engine serves' if count == 1 else 'engines serve'} it"
        for who, count in replicas.items()
    )


def _tables(runs: Sequence[Measurement]) -> Iterator[WrittenTable]:
    """Returns the figures: of one run by group of requests, of several a row per run; what was
    promised and came of it, if anything was; and what went wrong in them, if anything did.
    """
    tables = score_tables(runs[0].summary) if len(runs) == 1 else [runs_table("Runs", runs)]
    yield from map(written, tables)
    first = runs[0].summary
    if len(runs) == 1:
        others = [against_log(runs[0]), promises_by_tier(first), cold_start(first), portions(first)]
    else:
        others = [promises_by_run("run", runs), worst_off("run", runs)]
    yield from (written(table) for table in (*others, errors_table(runs)) if table.rows)


def _subtitle(runs: Sequence[Measurement]) -> str:
    models = dict.fromkeys(run.summary.target.model for run in runs)
    policies = dict.fromkeys(run.summary.target.policy for run in runs)
    tiers = [f"{name}: {targets_text(each)}" for name, each in tier_targets(runs).items()]
    loads = dict.fromkeys(f"{run.summary.requested_rps:.4g}" for run in runs)
    load = f"{', '.join(loads)} requests/s for {duration(runs[0].duration_s)}"
    return f"{', '.join(models)}, policy {', '.join(policies)}; {load}. " + "; ".join(tiers)


def _made_again(asked: Asked) -> Iterator[Notice]:
    if asked.made_from:
        yield Notice(
            "Made again from records",
            f"{asked.made_from} says what became of each request. Not in it are the command and "
            "the seed of the runs, what a search found, and a simulation's chunk sizes and queue "
            "lengths.",
        )


def _notices(runs: Sequence[Measurement]) -> Iterator[Notice]:
    for run in runs:
        of = f" {run.name}" if run.name else ""
        if run.summary.invalid:
            yield Notice(f"Invalid run{of}: it says nothing of the server", run.summary.invalid)
        if run.summary.end is not End.COMPLETE:
            yield Notice(f"Partial run{of}", run.summary.problem)
    if said := replayed_from(runs[0]):
        yield Notice("Replayed from a decision log", said + ".")
    behind = [called(run) for run in runs if MEASURED.falls_behind(run.summary)]
    if behind:
        where = f" in {', '.join(behind)}" if len(runs) > 1 else ""
        yield Notice(
            f"Growing backlog{where}",
            "More was sent than was served, by more than chance explains. Where deadlines are long"
            " nobody may be late yet.",
        )


def _over_all(
    asked: Asked, runs: Sequence[Measurement], capacities: Mapping[str, Capacity]
) -> Iterator[Section]:
    charts = list(over_loads(runs, asked.max_misses))
    if capacities:
        named = {name or asked.mode: each for name, each in capacities.items()}
        charts.insert(0, ranking(named))
    if charts:
        yield Section("Over all loads", charts)


def _of_views(shown: Sequence[View], asked: Asked) -> Iterator[Section]:
    why_no_series = "Records do not hold them." if asked.made_from else NOT_TOLD
    for view in shown:
        choice = view.load if len(shown) > 1 else ""
        yield Section("Who was on time", attainment(view), choice)
        yield Section("How long it took", distributions(view), choice)
        yield Section("Over time", list(over_time(view, why_no_series)), choice)


def _most_telling(shown: Sequence[View], max_misses: float) -> str:
    """Returns the smallest load at which somebody had too many late; the largest where nobody."""
    criterion = MEASURED._replace(max_misses=max_misses)
    for view in shown:
        scores = [run.summary.total for run in view.runs]
        if not all(criterion.allows(s.num_sent - s.num_on_time, s.num_sent) for s in scores):
            return view.load
    return shown[-1].load


def _facts(asked: Asked, runs: Sequence[Measurement]) -> dict[str, str]:
    """Returns what is needed to do it again."""
    targets = dict.fromkeys(run.summary.target.name for run in runs)
    windows = dict.fromkeys(
        f"{run.summary.window.start_s:g} to {run.summary.window.end_s:.4g} s" for run in runs
    )
    stated = dict.fromkeys(filter(None, (run.summary.target.stated_output for run in runs)))
    return {
        "command": asked.command,
        "seed": "not in the records" if asked.seed is None else str(asked.seed),
        "target": ", ".join(targets),
        **({"max_tokens stated": ", ".join(stated)} if stated else {}),
        "measured": ", ".join(windows),
        "versions": ", ".join(f"{name} {version}" for name, version in asked.versions.items()),
        "written": asked.written_at,
    }
