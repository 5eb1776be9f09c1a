"""What README shows first is what the demo prints today, but for the figures, which are of one run
of it (`python -m tests.first_screen`).
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Iterator

import pytest

from loadgen.demo import words
from loadgen.demo.command import BASELINE, FOLDER, OURS, PROMPT
from loadgen.demo.load import BATCH, CHAT, REPORT, Load
from loadgen.scoring.modes import Measurement
from loadgen.scoring.summary import summarise
from loadgen.targets.record import Outcome, Record
from loadgen.targets.target import Run
from loadgen.workload.traces import Row
from niyama.client.values import Decision, Explanation, Importance, ResolvedTargets, Targets
from tests.first_screen import BEGIN, END, MOST_BYTES, PICTURE, README, block, replaced
from tests.loadgen.examples import INFO, planned

TIERS = (CHAT, REPORT, BATCH)


def of(policy: str, is_late: bool) -> Measurement:
    """A run with a request of each tier."""
    targets = [tier.targets for tier in INFO.tiers]
    records = [
        Record(
            planned(i, 0.0, targets[i], tier=tier),
            0.0,
            Outcome.FINISHED,
            array("d", [99.0 if is_late and tier == BATCH else 0.5] * 3),
            99.0,
            relegated=is_late,
            request_id="0" * 16,
        )
        for i, tier in enumerate(TIERS)
    ]
    return Measurement(policy, summarise(TIERS, 1.0, INFO, Run(records, 1.0)), records, policy)


def printed() -> str:
    """What the demo would print of such runs, and of a story of one word."""
    load = Load([Row(0.0, 1, 1, tier) for tier in TIERS], 12.0, 16.0)
    runs = of(BASELINE, True), of(OURS, True)
    story = Explanation(
        "0" * 16,
        ResolvedTargets(Targets(ttlt=1.0), "", Importance.LOW, "request"),
        tuple(Decision(0.5, kind, "x", None, {}) for kind in sorted(words.MAIN)),
        "Late: why.",
        ("A TTLT would have been met.",),
    )
    return "\n".join(
        [
            f"\n> {PROMPT}\n\n  story\n\n  0 tokens: the first after 0 ms\n",
            words.about(load, 1e4, {tier.name: tier.targets for tier in INFO.tiers}) + "\n",
            words.comparison(runs) + "\n",
            *map(words.late, runs),
            f"\n{words.by_tier(runs[1])}\n",
            words.asked(runs[1].records[2]) + "\n",
            words.story(story) + "\n",
            words.written(FOLDER / "report.html", ["python", "-m", "loadgen"]),
        ]
    )


def shown() -> str:
    """What README shows."""
    page = README.read_text()
    found = re.search(f"{re.escape(BEGIN)}\n(.*?)\n{re.escape(END)}", page, re.DOTALL)
    assert found, "README has no output of the demo"
    return found[1]


def shape(text: str) -> Iterator[str]:
    """What is the same in every run: headings and the first word of each row, and phrases without
    their figures; not what is indented, the story and the timeline.
    """
    for paragraph in text.split("\n\n"):
        lines = paragraph.splitlines()
        rule = next((i for i, line in enumerate(lines) if set(line) == {"─"}), None)
        if rule is not None:
            yield from (" ".join(line.split()) for line in lines[:rule])
            yield from (line.split()[0] for line in lines[rule + 1 :])
        elif told := " ".join(line for line in lines if not line.startswith("  ")):
            yield re.sub(r"\b[0-9a-f]{16}\b|[\d.,]+( m?s)?\b", "#", told)


def test_it_is_what_the_demo_prints_today() -> None:
    def told(text: str) -> list[str]:
        kept = [part for part in shape(text) if not part.startswith(("Late under", "Report"))]
        return [re.sub(r"(?<=#   # ).*(?=; in short)", "*", part) for part in kept]

    assert told(shown()) == told(block(printed()))
    timings = r"^  \d+ tokens: the first after .*; asked for were .* and .*: on time$"
    assert re.search(timings, shown(), re.MULTILINE)


def test_its_figures_are_of_one_run_and_make_the_point() -> None:
    lines = {line.split()[0]: line.split() for line in shown().splitlines() if line.split()}
    about = " ".join(shown().split())
    for name in ("chat", "reports", "batch"):
        assert re.search(rf" {lines[name][1]} (?:of a )?{name}|{lines[name][1]} of {name}", about)
    ours, theirs = (
        re.search(rf"^{policy} +([\d.]+)%", shown(), re.MULTILINE) for policy in (OURS, BASELINE)
    )
    assert ours is not None
    assert theirs is not None
    assert float(ours[1]) > 95 > 2 * float(theirs[1])


def test_it_fits_a_screen() -> None:
    lines = shown().splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100


def test_the_picture_is_small_and_shown() -> None:
    data = PICTURE.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(data) <= MOST_BYTES
    width, height = struct.unpack(">II", data[16:24])
    assert width > height
    assert str(PICTURE.relative_to(README.parent)) in README.read_text()


def test_a_block_leaves_out_reasons_and_what_is_of_one_machine() -> None:
    text = block(printed())
    assert "file:" not in text
    assert "Late: why." not in text
    assert "would have been met" not in text
    assert text.count("admitted") == 1
    assert "\n\n\n" not in text
    assert text.startswith(f"```\n$ make demo\n\n> {PROMPT}\n  story\n")
    assert text.endswith("\n```")


@pytest.mark.parametrize("page", ["no marks", BEGIN])
def test_a_page_without_marks_is_not_written(page: str) -> None:
    with pytest.raises(AssertionError, match="has no"):
        replaced(page, "text")
