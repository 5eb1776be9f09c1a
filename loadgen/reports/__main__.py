"""`python -m loadgen.reports RECORDS.csv`: the report of runs made again from their records.

python -m loadgen.reports run.csv                            the tables, as the run printed them
python -m loadgen.reports run.csv --html run.html --json run.json

The figures are those of the run to the last digit. What records cannot tell is said to be unknown:
`loadgen.reports.records` says what that is. Exit status 0; 1 standard output was lost; 2 the file
cannot be read, or another not written.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from engine.flags import Flag, add_flags, make
from loadgen.reports import figures, records, terminal
from loadgen.reports.html import document
from loadgen.reports.html.page import Asked, page, server_versions
from loadgen.scoring.criterion import MEASURED
from loadgen.scoring.modes import Measurement
from niyama.client.terminal import discard_output, have_streams, printable, write_any_character

EXIT_OUTPUT, EXIT_USAGE = 1, 2


@dataclass(frozen=True, slots=True)
class Flags:
    """The command line: the file that is read, and what is made of it beside the tables."""

    records: Path
    json: Annotated[Path | None, Flag("write the figures", metavar="FILE")] = None
    html: Annotated[Path | None, Flag("write a page of charts", metavar="FILE")] = None
    max_misses: Annotated[
        float, Flag("html: share of the requests that may be late (default %(default)s)")
    ] = MEASURED.max_misses


def parse(argv: Sequence[str] | None) -> Flags:
    """Reads the command line (None: the process's own). Exits where it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m loadgen.reports",
        description="Makes the report of runs again, from what --csv of python -m loadgen wrote.",
    )
    parser.add_argument("records", type=Path, metavar="RECORDS.csv")
    add_flags(parser, Flags)
    typed = parser.parse_args(argv)
    return make(Flags, typed, records=typed.records)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the records, writes the reports that were asked for, and returns the exit status."""
    have_streams()
    asked = sys.argv[1:] if argv is None else argv
    flags = parse(argv)
    write_any_character()
    try:
        runs = records.read(flags.records)
        mode = _mode(runs)
        if flags.json is not None:
            figures.write(figures.to_json(mode, {"records": str(flags.records)}, runs), flags.json)
        if flags.html is not None:
            document.write(page(_page_head(asked, flags, mode, runs), runs), flags.html)
        out = terminal.console()
        terminal.print_mode(mode, runs, None, out)
        out.print(f"made again from {flags.records}", markup=False, highlight=False)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        discard_output()
        return EXIT_OUTPUT
    except OSError as error:
        if error.filename is None and error.errno:  # of no file, hence of standard output
            discard_output()
            return _fail(f"standard output: {error.strerror}", EXIT_OUTPUT)
        return _fail(str(error), EXIT_USAGE)
    except records.BadRecords as error:
        return _fail(str(error), EXIT_USAGE)


def _fail(message: str, status: int) -> int:
    with contextlib.suppress(OSError):  # nobody is there to be told
        print(f"loadgen.reports: {printable(message)}", file=sys.stderr)
    return status


def _mode(runs: Sequence[Measurement]) -> str:
    """Says how the runs are reported. Of a search they are what it tried, as those of a sweep."""
    if len(runs) == 1:
        return "run"
    return "compare" if len({run.contender for run in runs}) > 1 else "sweep"


def _page_head(argv: Sequence[str], flags: Flags, mode: str, runs: Sequence[Measurement]) -> Asked:
    """Returns the head of the page."""
    return Asked(
        mode,
        printable(shlex.join(["python", "-m", "loadgen.reports", *argv])),
        None,
        flags.max_misses,
        {"this page by niyama": version("niyama")} | server_versions(runs),
        datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        made_from=str(flags.records),
    )


if __name__ == "__main__":
    sys.exit(main())
