"""`python -m loadgen.audit LOG`: who came to harm, for whose sake, and what would have been.

python -m loadgen.audit decisions.jsonl                          the answer, and the main table
python -m loadgen.audit decisions.jsonl --html audit.html --json audit.json
python -m loadgen.audit decisions.jsonl --where tenant=acme --where result=late   those requests

LOG is what `--decision-log` of a server wrote; the files that got a number when they were full are
read before it. Several are of several engines that share the requests. Exit status 0; 1 standard
output was lost; 2 the log cannot be read, or a file not written; 130, 143 or 129 where a signal
ended it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from engine.decision_lines import BadLog
from engine.decision_log import DecisionLogReader, files_of
from engine.flags import Flag, add_flags, make
from loadgen import interrupts
from loadgen.audit import figures, query, terminal
from loadgen.audit.account import Account, Ended
from loadgen.audit.alternatives import MOST_REQUESTS, imagine
from loadgen.audit.page import Head, page
from loadgen.audit.query import Condition, parse_condition
from loadgen.reports import figures as json_file
from loadgen.reports.html import document
from loadgen.reports.terminal import console
from niyama.client.terminal import discard_output, have_streams, printable, write_any_character

EXIT_OUTPUT, EXIT_USAGE = 1, 2


def parse_requests(text: str) -> int:
    """Reads a number of requests, 0 for none. Raises ValueError."""
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{text!r} is not a number of requests")
    return int(text)


@dataclass(frozen=True, slots=True)
class Flags:
    """The command line: the log that is read, and what is made of it."""

    logs: Sequence[Path]
    html: Annotated[Path | None, Flag("write a page", metavar="FILE")] = None
    json: Annotated[Path | None, Flag("write the figures", metavar="FILE")] = None
    where: Annotated[
        Sequence[Condition],
        Flag(
            f"list the requests of which it holds, as JSON, a line each; several: all hold. Names: "
            f"{', '.join(query.NAMES)}",
            metavar="NAME=VALUE",
            parse=parse_condition,
            is_repeated=True,
        ),
    ] = ()
    simulated: Annotated[
        int,
        Flag(
            "requests of which it is simulated what would have been; 0: none (default %(default)s)",
            parse=parse_requests,
        ),
    ] = MOST_REQUESTS


def parse(argv: Sequence[str] | None) -> Flags:
    """Reads the command line (None: the process's own). Exits where it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m loadgen.audit",
        description="Tells who came to harm, for whose sake, and what would have been otherwise.",
    )
    parser.add_argument("logs", type=Path, nargs="+", metavar="LOG")
    add_flags(parser, Flags)
    typed = parser.parse_args(argv)
    return make(Flags, typed, logs=typed.logs)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the log, writes what was asked for, and returns the exit status."""
    have_streams()
    asked = sys.argv[1:] if argv is None else list(argv)
    flags = parse(argv)
    write_any_character()
    try:
        with interrupts.handled(interrupts.interrupt):
            if flags.where:
                _list(flags)
            else:
                _report(flags, asked)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt as error:
        return interrupts.exit_status(interrupts.number_of(error))
    except BrokenPipeError:
        discard_output()
        return EXIT_OUTPUT
    except OSError as error:
        if error.filename is None and error.errno:  # of no file, hence of standard output
            discard_output()
            return _fail(f"standard output: {error.strerror}", EXIT_OUTPUT)
        return _fail(f"{error.filename}: {error.strerror}", EXIT_USAGE)
    except BadLog as error:
        return _fail(str(error), EXIT_USAGE)


def _list(flags: Flags) -> None:
    """Prints the requests for which all conditions hold."""
    account = Account()
    for ended in _read(account, flags.logs):
        who = account.who(ended.logged)
        if all(each.holds(ended, who) for each in flags.where):
            print(json.dumps(query.to_json(ended, who)))


def _report(flags: Flags, asked: Sequence[str]) -> None:
    """Prints the answer, and writes the files that were asked for."""
    account = Account()
    for _ in _read(account, flags.logs):
        pass
    if not account.cells:
        raise BadLog(f"{', '.join(map(str, flags.logs))}: no request is in it")
    alternatives = imagine(account, flags.logs, flags.simulated) if flags.simulated else None
    paths = [printable(str(path)) for path in flags.logs]
    head = Head(
        paths,
        printable(shlex.join(["python", "-m", "loadgen.audit", *asked])),
        version("niyama"),
        datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )
    made = page(head, account, alternatives)
    if flags.json is not None:
        json_file.write(figures.to_json(paths, account, alternatives), flags.json)
    if flags.html is not None:
        document.write(made, flags.html)
    terminal.print_page(made, console())


def _read(account: Account, logs: Sequence[Path]) -> Iterator[Ended]:
    """Reads the logs, one after the other. Raises BadLog, or OSError."""
    for path in logs:
        yield from account.read(DecisionLogReader(files_of(path)))


def _fail(message: str, status: int) -> int:
    with contextlib.suppress(OSError):  # nobody is there to be told
        print(f"loadgen.audit: {printable(message)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
