"""Stop strings: where an output ends because of what it says.

A stop string is looked for in the output's text, in which special tokens are empty, and in the same
text with special tokens written out: "<|im_end|>" stops at that token, and "<|im_end|>\\nUser" at
that token and what follows it. A special token counts as a whole, so ">" is not found in it. No
stop string begins in the prompt, which is no part of the output.

Of several stop strings that become complete together, the first to end counts, then the first to
begin, as if the text had come character by character. One that is complete within the first tokens
(`min_tokens`) is let pass. One that begins there and ends later is found, as in vLLM.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple


class _Match(NamedTuple):
    """Where a stop string stands, in characters from the beginning of the text."""

    start: int
    end: int
    stop: str


class StopChecker:
    """Finds the first stop string to be complete in a text that arrives in pieces.

    Where the text is cut does not depend on how it was split, and it is never cut in what was
    already shown. Raises ValueError for an empty stop.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._text = _Search(self._stops)
        self._written: _Written | None = None  # while a special token may be part of a stop string
        self._special_at = 0  # where the last special token was
        self._held = ""  # may be the beginning of a stop string

    def feed(self, text: str, counts: bool = True) -> tuple[str, str | None]:
        """Takes more of the output's text. Returns text to show, and the stop string that ends it,
        if any; then that text is the last.

        Without `counts`, stop strings that become complete with `text` are let pass.
        """
        found = self._text.feed(text)
        if self._written is not None:
            found += self._written.feed(text)
        self._held += text
        return self._show(found if counts else [])

    def feed_special(self, text: str, counts: bool = True) -> tuple[str, str | None]:
        """Takes a special token, which is written out as `text` and shown as nothing. Returns what
        `feed` does.
        """
        if self._written is None:
            if not any(text in stop for stop in self._stops):
                self._special_at = self._text.len
                return "", None
            self._written = _Written(self._text, self._special_at)
        found = self._written.feed_special(text)
        self._special_at = self._text.len
        return self._show(found if counts else [])

    def finish(self) -> str:
        """Returns the text that was held back, once no more comes."""
        held, self._held = self._held, ""
        return held

    def _show(self, found: Sequence[_Match]) -> tuple[str, str | None]:
        shown_len = self._text.len - len(self._held)
        if found:
            first = min(found, key=lambda match: (match.end, match.start, -len(match.stop)))
            text, self._held = self._held[: first.start - shown_len], ""
            return text, first.stop
        certain_len = self._text.certain_len
        if self._written is not None:  # its positions are those with special tokens empty
            certain_len = min(certain_len, self._written.certain_len)
            if not self._written.is_open:
                self._written = None
        num_shown = certain_len - shown_len
        text, self._held = self._held[:num_shown], self._held[num_shown:]
        return text, None


class _Search:
    """Finds stop strings in a growing text. It keeps the end of the text that may begin one."""

    def __init__(self, stops: Sequence[str], tail: str = "", length: int = 0) -> None:
        self.stops = stops
        self.tail = tail
        self.len = length  # characters so far

    @property
    def certain_len(self) -> int:
        """Returns the length of the text's beginning in which no stop string to come can begin."""
        return self.len - len(self.tail)

    def feed(self, text: str) -> list[_Match]:
        """Returns the stop strings that end within `text`."""
        num_old = len(self.tail)
        whole = self.tail + text
        offset = self.len - num_old
        found = []
        for stop in self.stops:
            at = whole.find(stop, max(0, num_old + 1 - len(stop)))
            while at >= 0:
                found.append(_Match(offset + at, offset + at + len(stop), stop))
                at = whole.find(stop, at + 1)
        self.len += len(text)
        self.tail = whole[len(whole) - self._num_open(whole) :]
        return found

    def _num_open(self, text: str) -> int:
        """Returns the length of the longest end of `text` that is the beginning of a stop string,
        and not all of it.
        """
        longest = 0
        for stop in self.stops:
            at = text.find(stop[0], max(0, len(text) + 1 - len(stop)))
            while at >= 0 and len(text) - at > longest:
                if stop.startswith(text[at:]):
                    longest = len(text) - at
                at = text.find(stop[0], at + 1)
        return longest


class _Written:
    """Finds stop strings in the text with special tokens written out. Before this one, the last
    special token was at `since`.
    """

    def __init__(self, text: _Search, since: int) -> None:
        tail = text.tail[max(0, since - text.certain_len) :]
        self._search = _Search(text.stops, tail, text.len)
        self._specials: deque[tuple[int, int]] = deque()  # where each begins and ends
        self._num_before = 0  # characters of special tokens before those

    @property
    def certain_len(self) -> int:
        """Returns the length as in `_Search`, in characters of the text with special tokens
        empty.
        """
        return self._without_specials(self._search.certain_len)

    @property
    def is_open(self) -> bool:
        """Returns whether a stop string that holds a special token may yet become complete."""
        return bool(self._specials)

    def feed(self, text: str) -> list[_Match]:
        """Returns the stop strings that end within `text`. None cuts a special token."""
        matches = [
            _Match(self._without_specials(start), self._without_specials(end), stop)
            for start, end, stop in self._search.feed(text)
            if not (self._cuts_special(start) or self._cuts_special(end))
        ]
        self._forget()
        return matches

    def feed_special(self, text: str) -> list[_Match]:
        """Returns the stop strings that end with a special token, written out as `text`."""
        self._specials.append((self._search.len, self._search.len + len(text)))
        return self.feed(text)

    def _forget(self) -> None:
        while self._specials and self._specials[0][1] <= self._search.certain_len:
            start, end = self._specials.popleft()
            self._num_before += end - start

    def _cuts_special(self, position: int) -> bool:
        return any(start < position < end for start, end in self._specials)

    def _without_specials(self, position: int) -> int:
        inside = (min(position, end) - start for start, end in self._specials if start < position)
        return position - self._num_before - sum(inside)
