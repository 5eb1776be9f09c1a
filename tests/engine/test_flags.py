"""An annotated dataclass as flags: the class alone says the defaults."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from engine.flags import Flag, add_flags, flags_of, make


def even(text: str) -> int:
    if int(text) % 2:
        raise ValueError(f"{text} is odd")
    return int(text)


@dataclass(frozen=True)
class Flags:
    needed: Annotated[str, Flag("no default")]
    max_size: Annotated[int, Flag("bytes")] = 7
    folder: Annotated[Path | None, Flag("default: none")] = None
    is_quick: Annotated[bool, Flag("fast")] = False
    pair: Annotated[int, Flag("even (default %(default)s)", parse=even)] = 2
    names: Annotated[Sequence[str], Flag("each", is_repeated=True)] = ()
    share: Annotated[float | None, Flag("gate", alone="0.5")] = None
    colour: Annotated[str, Flag("one", ("red", "blue"))] = "red"
    this: Annotated[bool, Flag(is_exclusive=True)] = False
    that: Annotated[bool, Flag(is_exclusive=True)] = False
    unmarked: int = 1


def parsed(*argv: str) -> Flags:
    parser = argparse.ArgumentParser()
    add_flags(parser, Flags)
    return make(Flags, parser.parse_args(["--needed", "x", *argv]), unmarked=5)


def test_what_is_not_given_is_as_the_class_has_it() -> None:
    assert parsed() == Flags("x", unmarked=5)


def test_values_have_the_types_of_their_fields() -> None:
    given = parsed(
        *("--max-size", "8", "--folder", "f", "--is-quick", "--pair", "4", "--names", "a"),
        *("--names", "b", "--share", "--colour", "blue"),
    )
    assert given == Flags("x", 8, Path("f"), True, 4, ("a", "b"), 0.5, "blue", unmarked=5)


def test_a_value_that_cannot_be_parsed_is_refused_in_the_words_of_its_parser(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parsed("--pair", "3")
    assert "argument --pair: 3 is odd" in capsys.readouterr().err


def test_of_exclusive_flags_one_may_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert parsed("--that") == Flags("x", that=True, unmarked=5)
    with pytest.raises(SystemExit):
        parsed("--this", "--that")
    assert "--that: not allowed with argument --this" in capsys.readouterr().err


def test_values_stay_texts_where_that_is_asked_for() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, Flags, is_typed=False)
    assert vars(parser.parse_args(["--pair", "3", "--colour", "?", "--names", "a"])) == {
        **dict.fromkeys(flags_of(Flags)),
        **{"pair": "3", "colour": "?", "names": ["a"]},
    }


def test_help_ends_with_a_default_where_it_names_none() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, Flags, shows_defaults=True)
    shown = " ".join(parser.format_help().split())
    assert "bytes (default: 7) --folder FOLDER default: none --is-quick fast (default: no)" in shown
    assert "--needed NEEDED no default --max-size" in shown
    assert "even (default 2) --names" in shown
