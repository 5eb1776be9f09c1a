"""What the demo prints: lines of at most `WIDTH` characters, plain where no terminal reads."""

from __future__ import annotations

import io
import shlex
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from loadgen.demo.load import BATCH, CHAT, REPORT, Load, num_tokens
from loadgen.scoring.modes import Measurement
from loadgen.scoring.score import Percentiles, Score, is_on_time
from loadgen.targets.record import Record
from niyama.client.streams import Heard
from niyama.client.values import Decision, Explanation, Targets

WIDTH = 96
NAMES = {CHAT: "chat", REPORT: "reports", BATCH: "batch"}
MAIN = frozenset({"admitted", "relegated", "preempted", "restarted", "finished"})  # decisions
MOST_NEEDED = 2  # sentences on what would have had to be different


class Wrapped:
    """Prints a text as it comes, a word at a time, in lines that begin with `indent`."""

    def __init__(self, indent: str = "  ") -> None:
        self._indent = indent
        self._word = ""  # what has come of the word that has not ended
        self._column = 0  # characters in the line so far; 0: it is empty

    def add(self, piece: str) -> None:
        """Takes the next piece of the text."""
        for character in piece:
            if not character.isspace():
                self._word += character
                continue
            self._end_word()
            if character == "\n" and self._column:
                self._break()

    def end(self) -> None:
        """Ends the text, and its last line."""
        self._end_word()
        if self._column:
            self._break()

    def _end_word(self) -> None:
        if not self._word:
            return
        if self._column and self._column + 1 + len(self._word) > WIDTH:
            self._break()
        before = " " if self._column else self._indent
        print(before + self._word, end="", flush=True)
        self._column += len(before) + len(self._word)
        self._word = ""

    def _break(self) -> None:
        print(flush=True)
        self._column = 0


def timings(stream: Heard) -> str:
    """Tells in a line how long a completion took, and what its caller had asked for."""
    finished = stream.finished
    if finished is None:
        return "it did not end"
    found = finished.timings
    asked_for = " and ".join(brief(target.target) for target in finished.targets)
    verdict = "on time" if finished.on_time else "late"
    return (
        f"{finished.usage.output_tokens} tokens: the first after {brief(found.ttft)}, then one"
        f" every {brief(found.mean_tbt)}; asked for were {asked_for}: {verdict}"
    )


def about(load: Load, served_per_s: float, targets: Mapping[str, Targets]) -> str:
    """Tells what is sent, and why so much of it."""
    chat, report = targets[CHAT], targets[REPORT]
    return paragraph(
        f"This engine serves {served_per_s:,.0f} tokens/s of the following mix, and is given work"
        f" for {num_tokens(load.rows) / served_per_s:.0f} s. At once come {load.count(BATCH)} of a"
        f" batch, of low importance, due in {brief(load.batch_ttlt_s)} each; and for"
        f" {brief(load.arrivals_s)} {load.count(CHAT)} of chat (tier {CHAT}: first token within"
        f" {brief(chat.ttft)}, then one every {brief(chat.tbt)}) and {load.count(REPORT)} reports"
        f" (tier {REPORT}: complete within {brief(report.ttlt)}). The same requests under each"
        " policy:"
    )


def brief(seconds: float | None) -> str:
    """Writes a duration to two or three digits."""
    if seconds is None:
        return "-"
    if seconds < 0.01:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.1f} s" if seconds % 1 else f"{seconds:.0f} s"


def paragraph(text: str) -> str:
    """Returns a text in lines."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def comparison(runs: Sequence[Measurement]) -> str:
    """Returns the table that makes the point, a line for each policy."""
    table = _table(
        "policy",
        "chat\non time",
        "first token of chat\np50 / p99",
        "reports\non time",
        "batch\non time",
        "batch\ndone after",
        "all\non time",
        "tokens\nper s",
    )
    for run in runs:
        scores = {score.group: score for score in run.summary.by_tier}
        chat = scores[CHAT]
        table.add_row(
            run.name,
            share(chat),
            quantiles(chat.ttft),
            share(scores[REPORT]),
            share(scores[BATCH]),
            f"{last_end(run.records, BATCH):.1f} s",
            share(run.summary.total),
            f"{tokens_per_s(run.records):,.0f}",
        )
    return _shown(table)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table


def _shown(table: Table) -> str:
    """Returns a table as lines that end with their last character."""
    lines = io.StringIO()
    Console(file=lines, width=WIDTH, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in lines.getvalue().splitlines())


def quantiles(latency: Percentiles) -> str:
    """Writes the median and the 99th percentile."""
    return f"{brief(latency.p50)} / {brief(latency.p99)}"


def share(score: Score) -> str:
    """Writes who was on time, of all that were sent."""
    return "-" if score.attainment is None else f"{score.attainment:.1%}"


def last_end(records: Sequence[Record], tier: str) -> float:
    """Returns when the last request of a tier had its last token, in seconds of the run."""
    return max(
        (r.token_at[-1] for r in records if r.request.tier == tier and r.token_at), default=0
    )


def tokens_per_s(records: Sequence[Record]) -> float:
    """Returns the prompt and output tokens that were served in a second of the run, to its end."""
    served = [record for record in records if record.token_at]
    tokens = sum(record.request.prompt_len + len(record.token_at) for record in served)
    return tokens / max((record.token_at[-1] for record in served), default=1.0)


def by_tier(run: Measurement) -> str:
    """Returns the figures of one run, a line for each tier."""
    table = _table(
        run.name,
        "sent",
        "finished",
        "on time",
        "relegated",
        "first token\np50 / p99",
        "last token\np50 / p99",
    )
    for score in (*run.summary.by_tier, run.summary.total):
        table.add_row(
            NAMES.get(score.group, score.group),
            str(score.num_sent),
            str(score.num_finished),
            share(score),
            str(score.num_relegated),
            quantiles(score.ttft),
            quantiles(score.ttlt),
        )
    return _shown(table)


def late(run: Measurement) -> str:
    """Says who was late, and whether some of them got no answer."""
    sent = Counter(record.request.tier for record in run.records)
    missed = Counter(r.request.tier for r in run.records if not is_on_time(r))
    whose = [f"{missed[t]} of {sent[t]} {name}" for t, name in NAMES.items() if missed[t]]
    said = f"Late under {run.name}: {', '.join(whose) or 'nobody'}."
    if failed := [record for record in run.records if record.outcome.is_incomplete]:
        why = failed[0].error or failed[0].outcome.value
        said += f" Of {len(failed)} of them the answer did not come: {why}"
    return paragraph(said)


def asked(record: Record) -> str:
    """Returns the command that asks for the story of a request, and why of that one."""
    which = "one that was relegated" if record.relegated else "none was relegated; the slowest"
    return f"$ python -m client explain {record.request_id}   # {which}; in short:"


def story(told: Explanation) -> str:
    """Returns the main lines of what a server tells of a request."""
    decisions = [
        f"{brief(each.at):>9}  {each.kind:<10} {each.detail}{_predicted(each)}"
        for each in told.decisions
        if each.kind in MAIN
    ]
    reasons = [told.summary, *(f"- {sentence}" for sentence in told.needed[:MOST_NEEDED])]
    return "\n".join([*_indented(decisions, 24), *_indented(reasons, 4)])


def _indented(lines: Sequence[str], further: int) -> list[str]:
    """Breaks lines; what follows in each is indented by `further` columns."""
    return [
        textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent=" " * further)
        for line in lines
    ]


def _predicted(made: Decision) -> str:
    expected = made.predicted_at
    return "" if expected is None else f" (to end at {brief(expected)})"


def written(report: Path, again: Sequence[str]) -> str:
    """Says where the report lies, and what sends the load again."""
    whole = " ".join(shlex.quote(word).replace(" ", "\0") for word in again)
    lines = textwrap.wrap(whole, WIDTH - 12, break_long_words=False, break_on_hyphens=False)
    command = " \\\n           ".join(lines).replace("\0", " ")
    return f"Report   {report}\n         {report.resolve().as_uri()}\nAgain    {command}"
