"""Stop strings: found however the text is split, across special tokens and the fewest tokens."""

from __future__ import annotations

import itertools
import pickle
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.stops import StopChecker


def split_anyhow(text: str, cuts: list[int]) -> list[str]:
    at = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(at)]


def check_stops(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    """What is shown, and the stop found."""
    checker, shown = StopChecker(stops), ""
    for piece in pieces:
        text, stop = checker.feed(piece)
        shown += text
        if stop is not None:
            return shown, stop
    return shown + checker.finish(), None


def first_to_end(stops: list[str], text: str) -> tuple[str, str | None]:
    """By trying every prefix of the text."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(deadline=None, max_examples=500)
@given(
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=4),
    text=st.text("abc\n", max_size=20),
    cuts=st.lists(st.integers(0, 20), max_size=8),
)
def test_a_stop_string_is_found_however_the_text_is_split(
    stops: list[str], text: str, cuts: list[int]
) -> None:
    assert check_stops(stops, split_anyhow(text, cuts)) == first_to_end(stops, text)
    assert check_stops(stops, list(text)) == first_to_end(stops, text)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    checker = StopChecker(["\n\nUser:"])
    assert checker.feed("Fine.\n") == ("Fine.", None)
    assert checker.feed("\nUs") == ("", None)
    assert checker.feed("ed ") == ("\n\nUsed ", None)
    assert checker.feed("\n\nUser: more") == ("", "\n\nUser:")
    assert checker.finish() == ""
    with pytest.raises(ValueError, match="empty"):
        StopChecker([""])


class Fed(NamedTuple):
    """One token as the checker sees it."""

    text: str
    is_special: bool = False


def check_tokens(stops: list[str], tokens: list[Fed], num_passed: int) -> tuple[str, str | None]:
    """What is shown, and the stop found, where the first tokens complete nothing."""
    checker, shown = StopChecker(stops), ""
    for count, token in enumerate(tokens, start=1):
        feed = checker.feed_special if token.is_special else checker.feed
        text, stop = feed(token.text, count > num_passed)
        shown += text
        if stop is not None:
            return shown, stop
    return shown + checker.finish(), None


class Char(NamedTuple):
    char: str
    token: int  # the number of the token it belongs to
    is_special: bool


def by_definition(stops: list[str], tokens: list[Fed], num_passed: int) -> tuple[str, str | None]:
    """By trying every position of both readings, special tokens empty and written out."""
    written = [Char(c, i, t.is_special) for i, t in enumerate(tokens) for c in t.text]
    shown = [char for char in written if not char.is_special]
    found = []
    for reading, stop in itertools.product((shown, written), stops):
        for start in range(len(reading) - len(stop) + 1):
            end = start + len(stop)
            text = "".join(char.char for char in reading[start:end])
            token = reading[end - 1].token
            if text != stop or token < num_passed or cuts(reading, start) or cuts(reading, end):
                continue
            shown_end, shown_start = (
                sum(not char.is_special for char in reading[:at]) for at in (end, start)
            )
            found.append((token, shown_end, shown_start, -len(stop), stop))
    text = "".join(char.char for char in shown)
    if not found:
        return text, None
    _, _, start, _, stop = min(found)
    return text[:start], stop


def cuts(reading: list[Char], at: int) -> bool:
    """Whether a special token goes on over this position."""
    if not 0 < at < len(reading) or not reading[at].is_special:
        return False
    return reading[at].token == reading[at - 1].token


TOKENS = st.one_of(
    st.builds(Fed, st.text("ab<>", max_size=3)),
    st.builds(Fed, st.sampled_from(["<a>", "<>", "<a><"]), st.just(True)),
)


@settings(deadline=None, max_examples=400)
@given(
    stops=st.lists(st.text("ab<>", min_size=1, max_size=6), min_size=1, max_size=4),
    tokens=st.lists(TOKENS, max_size=10),
    num_passed=st.integers(0, 6),
)
@example(["<a>"], [Fed("b"), Fed("<a>", True)], 0)
@example(["b<a>b"], [Fed("ab"), Fed("<a>", True), Fed("b")], 2)
@example([">b"], [Fed("<a>", True), Fed("b")], 0)
@example(["aa", "<a>b"], [Fed("a"), Fed("<a>", True), Fed("a")], 0)
@example(["aa"], [Fed("a"), Fed("a"), Fed("a")], 2)
@example(["b<a>"], [Fed("b"), Fed("<>", True), Fed("<a>", True)], 0)
def test_special_tokens_and_the_fewest_tokens_count_as_defined(
    stops: list[str], tokens: list[Fed], num_passed: int
) -> None:
    expected = by_definition(stops, tokens, num_passed)
    assert check_tokens(stops, tokens, num_passed) == expected


def test_what_is_shown_is_never_taken_back() -> None:
    """Text that may begin a stop string is held back before the fewest tokens, too."""
    checker = StopChecker([" house, and"])
    assert checker.feed("the house", counts=False) == ("the", None)
    assert checker.feed(", and so") == ("", " house, and")


def test_of_several_that_end_together_the_first_to_begin_counts() -> None:
    assert check_stops(["b", "ab", "abc"], ["xab"]) == ("x", "ab")
    assert check_stops(["abc", "b"], ["xabc"]) == ("xa", "b")


def test_many_special_tokens_that_may_belong_to_a_stop_string_are_not_kept() -> None:
    checker = StopChecker(["<a>" * 20 + "b"])

    def kept_after(num_specials: int) -> int:
        for _ in range(num_specials):
            assert checker.feed_special("<a>") == ("", None)
        return len(pickle.dumps(checker))

    assert kept_after(1000) == kept_after(1000), "bytes"
    assert checker.feed("b")[1] == "<a>" * 20 + "b"
