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
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from client.terminal import discard_output, have_streams, printable, write_any_character
from loadgen.reports import figures, records, terminal
from loadgen.reports.html import document
from loadgen.reports.html.page import Asked, page
from loadgen.scoring.criterion import MEASURED
from loadgen.scoring.modes import Measurement

EXIT_OUTPUT, EXIT_USAGE = 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the records, writes the reports that were asked for, and returns the exit status."""
    have_streams()
    asked = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(argv)
    write_any_character()
    path: Path = arguments.records
    try:
        runs = records.read(path)
        mode = _mode(runs)
        if arguments.json is not None:
            figures.write(figures.to_json(mode, {"records": str(path)}, runs), arguments.json)
        if arguments.html is not None:
            head = _asked(asked, path, mode, runs, arguments.max_misses)
            document.write(page(head, runs), arguments.html)
        _show(path, mode, runs)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadgen.reports",
        description="Makes the report of runs again, from what --csv of python -m loadgen wrote.",
    )
    parser.add_argument("records", type=Path, metavar="RECORDS.csv")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page of charts")
    parser.add_argument(
        "--max-misses",
        type=float,
        default=MEASURED.max_misses,
        help="html: share of the requests that may be late (default %(default)s)",
    )
    return parser


def _fail(message: str, status: int) -> int:
    with contextlib.suppress(OSError):  # nobody is there to be told
        print(f"loadgen.reports: {printable(message)}", file=sys.stderr)
    return status


def _mode(runs: Sequence[Measurement]) -> str:
    """Says how the runs are reported. Of a search they are what it tried, as those of a sweep."""
    if len(runs) == 1:
        return "run"
    return "compare" if len({run.contender for run in runs}) > 1 else "sweep"


def _show(path: Path, mode: str, runs: Sequence[Measurement]) -> None:
    out = terminal.console()
    if mode == "run":
        terminal.print_report(runs[0].summary, out)
    else:
        title = "contender" if mode == "compare" else "rate"
        terminal.print_runs(title, runs, None, out)
    out.print(f"made again from {path}", markup=False, highlight=False)


def _asked(
    argv: Sequence[str],
    path: Path,
    mode: str,
    runs: Sequence[Measurement],
    max_misses: float,
) -> Asked:
    """Returns the head of the page."""
    versions = {"this page by niyama": version("niyama")}
    servers = dict.fromkeys(run.summary.target.version for run in runs)
    if any(servers):
        versions["server"] = " and ".join(filter(None, servers))
    return Asked(
        mode,
        printable(shlex.join(["python", "-m", "loadgen.reports", *argv])),
        None,
        max_misses,
        versions,
        datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        made_from=str(path),
    )


if __name__ == "__main__":
    sys.exit(main())
