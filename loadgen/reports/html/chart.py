"""What a chart shows, as values: the page's script draws them and adds nothing but ticks.

Colours are names of the palette in style.css: `c0` to `c7` for things compared (Okabe and Ito's,
which colour-blind people can tell apart), `ink` for a total, `muted` for context, `good`, `bad`.
Shares are numbers between 0 and 1; the script writes them as percentages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

Point = tuple[float, float]

NUM_COLOURS = 8


def colour(index: int) -> str:
    """Returns the colour of the index-th of the things compared; after the eighth they repeat."""
    return f"c{index % NUM_COLOURS}"


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of a chart. `label` names the quantity and its unit."""

    label: str
    is_share: bool = False
    is_log: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A named line through points in ascending order of x."""

    name: str
    points: Sequence[Point]
    colour: str
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A target or limit: a straight line across the chart, at an x or a y."""

    label: str
    colour: str = "muted"
    x: float | None = None
    y: float | None = None


class Draw(StrEnum):
    """How the points of a line are joined. In a `STACK` each line is the height of an area that
    stands on the one before; a `STEP` holds a value until the next point.
    """

    LINE = "line"
    STEP = "step"
    STACK = "stack"


@dataclass(frozen=True, slots=True)
class Curves:
    """Lines over a common x. Charts with the same `group` show the same x under the pointer."""

    title: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    draw: Draw = Draw.LINE
    group: str = ""
    note: str = ""
    is_wide: bool = False


@dataclass(frozen=True, slots=True)
class BarSeries:
    """One bar of the same kind in each group; a value of None leaves the group without one."""

    name: str
    values: Sequence[float | None]
    colour: str


@dataclass(frozen=True, slots=True)
class Bars:
    """Upright bars, side by side within each group."""

    title: str
    y: Axis
    groups: Sequence[str]
    series: Sequence[BarSeries]
    note: str = ""
    is_wide: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """A lying bar. `up_to` is where the uncertainty ends, if it does not end at `value`."""

    name: str
    value: float
    colour: str
    up_to: float | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """Lying bars, one below the other, in the order given."""

    title: str
    x: Axis
    bars: Sequence[Bar]
    note: str = ""
    is_wide: bool = False


@dataclass(frozen=True, slots=True)
class Absent:
    """A chart that there is no data for; `reason` is a sentence."""

    title: str
    reason: str


Chart = Curves | Bars | Ranking | Absent


def to_json(chart: Chart) -> dict[str, Any]:
    """Returns a chart as the page's script reads it, with the `kind` that it tells charts apart
    by.
    """
    return {"kind": type(chart).__name__.lower()} | asdict(chart)
