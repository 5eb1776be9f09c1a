"""Request traces in the format of the Azure Public Dataset's LLM inference traces.

A header `TIMESTAMP,ContextTokens,GeneratedTokens`, then one request per row, in order of time, the
time stamp with up to nine fractional digits ("2023-11-16 18:15:46.6805900"), CR, LF or CRLF line
ends. A request log of one's own may have two columns more: `Tier`, which each row then names, and
`Application`, which may be empty. Other columns may follow. Source:
github.com/Azure/AzurePublicDataset.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
TIER, APPLICATION = "Tier", "Application"
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(\.\d{1,9})?(Z|[+-]\d\d:\d\d)?")


class Row(NamedTuple):
    """One request of a trace: seconds since the first row's instant, lengths in tokens, and what
    the trace has a column for (None: it has none).
    """

    at: float
    prompt_len: int
    output_len: int
    tier: str | None = None
    application: str | None = None


class BadTrace(ValueError):
    """The trace cannot be used; the message names file and line, in one line."""


def load(path: Path) -> tuple[Row, ...]:
    """Reads all rows of a trace; their times start at 0 and never decrease.

    Raises BadTrace, or OSError.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise BadTrace(f"{path}: not a text file") from None
    rows = tuple(_parse(text.splitlines(), path))
    if not rows:
        raise BadTrace(f"{path}: no requests")
    return rows


def _parse(lines: Iterable[str], path: Path) -> Iterable[Row]:
    rows = _cells(lines, path)
    _, header = next(rows, (1, []))
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise BadTrace(f"{path}, line 1: no column {', '.join(missing)} in the header")
    columns = [header.index(name) for name in COLUMNS]
    named = {name: header.index(name) for name in (TIER, APPLICATION) if name in header}
    start, last = None, 0.0
    for line, cells in rows:
        if not any(cells):
            continue
        try:
            stamp, prompt, output = (cells[column] for column in columns)
            instant = _instant(stamp)
            start = instant if start is None else start
            row = Row(
                instant - start,
                _tokens(prompt, "ContextTokens"),
                _tokens(output, "Gen"),
                _tier(cells[named[TIER]]) if TIER in named else None,
                cells[named[APPLICATION]] if APPLICATION in named else None,
            )
        except (IndexError, ValueError) as error:
            reason = "too few columns" if isinstance(error, IndexError) else error
            raise BadTrace(f"{path}, line {line}: {reason}") from None
        if row.at < last:
            raise BadTrace(f"{path}, line {line}: {stamp} is before the row above")
        last = row.at
        yield row


def _cells(lines: Iterable[str], path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of each line, from 1, and its cells.

    A row is a line: a quote that is not closed does not swallow the lines below it.
    """
    for number, line in enumerate(lines, start=1):
        try:
            for cells in csv.reader([line], strict=True):
                yield number, [cell.strip() for cell in cells]
        except csv.Error as error:
            raise BadTrace(f"{path}, line {number}: {error}") from None


def _instant(stamp: str) -> float:
    """Returns the seconds from the epoch to a time stamp. Raises ValueError.

    The fraction is added by itself, since datetime keeps only six digits of it.
    """
    match = _STAMP.fullmatch(stamp)
    if match is None:
        raise ValueError(f"{stamp!r} is not a time stamp such as 2023-11-16 18:15:46.6805900")
    whole = datetime.fromisoformat(match[1] + (match[3] or ""))
    if whole.tzinfo is None:
        whole = whole.replace(tzinfo=UTC)
    return whole.timestamp() + float(match[2] or 0.0)


def _tier(text: str) -> str:
    if not text:
        raise ValueError(f"no tier ({TIER})")
    return text


def _tokens(text: str, column: str) -> int:
    """Reads a count of tokens, 0 as 1: a request without prompt or output would be none."""
    try:
        tokens = int(text)
    except ValueError:
        tokens = -1
    if tokens < 0:
        raise ValueError(f"{text!r} is not a number of tokens ({column})")
    return max(1, tokens)
