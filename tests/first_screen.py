"""Makes what README shows first: `python -m tests.first_screen`.

Runs `make demo`'s program, writes what it printed between the marks in README.md, shortened, and a
picture of the top of its HTML report, by headless Chromium (Debian: `apt-get install chromium`), to
`docs/images/report.png`. Nothing in either is written by hand. Takes as long as the demo; run it on
a machine that does nothing else. Exit status: the demo's, or 1 where the picture is too large.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from loadgen.demo.command import FOLDER
from loadgen.demo.command import main as demo
from tests.loadgen.chromium import LIMIT_S, QUIET, chromium

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "images" / "report.png"
BEGIN, END = "<!-- what `make demo` printed -->", "<!-- to here -->"
WIDTH, HEIGHT = 1100, 770  # CSS pixels of the picture
MOST_BYTES = 100_000
EXPLAIN = "$ python -m client explain "
DECISION = re.compile(r" +[\d.,]+ m?s  [a-z]| {20,}")  # a line of its timeline, or what follows


class Both(io.StringIO):
    """What is printed, kept and shown."""

    def write(self, text: str) -> int:
        sys.__stdout__.write(text)  # type: ignore[union-attr]  # it is there
        return super().write(text)


def main() -> int:
    """Makes both and returns the exit status."""
    chromium()  # raises where there is none, before two minutes have gone
    with contextlib.redirect_stdout(Both()) as printed:
        status = demo([])
    if status:
        return status
    README.write_text(replaced(README.read_text(), block(printed.getvalue())))
    take(ROOT / FOLDER / "report.html")
    size = PICTURE.stat().st_size
    print(f"\n{README.name} and {PICTURE.relative_to(ROOT)} ({size:,} bytes) written")
    return int(size > MOST_BYTES)


def block(printed: str) -> str:
    """Returns README's part of what the demo printed, which is all of it but blank lines below
    prompts, the reasons of the story that is told last, the link to the report, which is of this
    machine, and how to send the load again.
    """
    kept = ["```", "$ make demo"]
    story, *last = re.split(rf"(?m)^(?=\{EXPLAIN}|Report )", printed)
    for line in story.splitlines():
        if line or not kept[-1].startswith(">"):
            kept.append(line)
    for part in last:
        lines = part.splitlines()
        is_report = part.startswith("Report ")
        kept += [*lines[:1], *([] if is_report else filter(DECISION.match, lines)), ""]
    return "\n".join([*kept[:-1], "```"])


def take(page: Path) -> None:
    """Takes the picture of the top of a page."""
    PICTURE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        shot = [f"--screenshot={PICTURE}", f"--window-size={WIDTH},{HEIGHT}"]
        command = [chromium(), *QUIET, f"--user-data-dir={profile}", *shot, page.as_uri()]
        subprocess.run(command, capture_output=True, timeout=LIMIT_S, check=True)


def replaced(page: str, text: str) -> str:
    """Returns the page with the text between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    assert found, f"{README.name} has no {BEGIN} with {END} after it"
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


if __name__ == "__main__":
    sys.exit(main())
