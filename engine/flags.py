"""Command-line flags made of an annotated dataclass, so that the class alone says their defaults.

A field such as

    max_requests: Annotated[int, Flag("most requests waiting or running")] = 1024

is the flag `--max-requests`. argparse is told of no default: what was not given is left out when
the dataclass is made, which then takes its own.
"""

from __future__ import annotations

import argparse
import re
import reprlib
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, TypeVar, cast, get_args, get_type_hints

T = TypeVar("T")
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")  # as texts
_KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


class Flag(NamedTuple):
    """Marks a dataclass field that is a command-line flag.

    `help` carries the unit; `%(default)s` in it stands for the field's default. `parse` makes the
    value of what was typed and raises ValueError; without it the field's type is called.
    """

    help: str = ""
    choices: Collection[str] | None = None
    metavar: str | None = None
    parse: Callable[[str], object] | None = None
    is_repeated: bool = False  # it may be given several times, and the field is a sequence
    is_exclusive: bool = False  # at most one of a dataclass's exclusive flags may be given
    alone: str | None = None  # the text that it stands for where no value follows it
    section: str = ""  # its topic: of help, and of a configuration file
    is_reloaded: bool = False  # a process that runs takes it anew when its file is read again


def flags_of(config: type[Any]) -> dict[str, Flag]:
    """Returns the flags of a dataclass by field name, in the order of its fields."""
    return {name: flag for name, _, flag in marked(config)}


def add_flags(
    container: argparse._ActionsContainer,
    config: type[Any],
    *,
    shows_defaults: bool = False,
    is_typed: bool = True,
    section: str | None = None,
    is_negatable: bool = False,
) -> None:
    """Adds the flags of a dataclass to a parser or to one of its groups; only those of a section,
    where one is named.

    With `shows_defaults` a help text that says nothing of a default ends with it. Without
    `is_typed` the values stay the texts that were typed. With `is_negatable` a flag without a value
    has a twin, `--no-NAME`, for where something else than the default may have been said before.
    """
    defaults = {field.name: field.default for field in fields(config)}
    exclusive: argparse._ActionsContainer | None = None
    for name, kind, flag in marked(config):
        if section not in (None, flag.section):
            continue
        default, text = defaults[name], flag.help % {"default": defaults[name]}
        place = container
        if flag.is_exclusive:
            place = exclusive = exclusive or container.add_mutually_exclusive_group()
        option = option_of(name)
        if shows_defaults and default is not MISSING and not re.search(r"\bdefault\b", text):
            text += f" (default: {_shown(default)})"
        if kind is bool:
            action = argparse.BooleanOptionalAction if is_negatable else "store_true"
            place.add_argument(option, action=action, default=None, help=text)
            continue
        place.add_argument(
            option,
            action="append" if flag.is_repeated else "store",
            type=(_converter(flag.parse) if flag.parse else kind) if is_typed else str,
            choices=flag.choices if is_typed else None,
            metavar=flag.metavar,
            nargs="?" if flag.alone else None,
            const=flag.alone,
            help=text,
        )


def make(config: type[T], arguments: argparse.Namespace, **others: object) -> T:
    """Makes the dataclass of the flags that were given, and of `others`, its fields that are none.

    Raises what its constructor raises.
    """
    return config(**given(config, arguments), **others)


def given(config: type[Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the values of those flags of a dataclass that were given, in the order of its
    fields.
    """
    values: Mapping[str, Any] = vars(arguments)
    return {
        name: tuple(values[name]) if flag.is_repeated else values[name]
        for name, flag in flags_of(config).items()
        if values[name] is not None
    }


def marked(config: type[Any]) -> tuple[tuple[str, type[Any], Flag], ...]:
    """Returns the name, the type of a value and the flag of each field that is marked as one, in
    the order of the fields.
    """
    return _marked(cast(Hashable, config))


@cache
def _marked(config: Hashable) -> tuple[tuple[str, type[Any], Flag], ...]:
    """Does as `marked`, once for each dataclass; to mypy a class is not hashable."""
    return tuple(
        (name, _value_type(get_args(hint)[0], mark), mark)
        for name, hint in get_type_hints(config, include_extras=True).items()
        for mark in get_args(hint)[1:]
        if isinstance(mark, Flag)
    )


def option_of(name: str) -> str:
    """Returns a field's flag as it is typed."""
    return f"--{name.replace('_', '-')}"


def from_text(kind: type[Any], flag: Flag, text: str) -> object:
    """Returns the value that a text stands for, as the command line would; of a repeated flag the
    values between its commas. Raises ValueError, with what it must be.
    """
    if flag.is_repeated:
        one = flag._replace(is_repeated=False)
        return tuple(from_text(kind, one, part.strip()) for part in text.split(","))
    if kind is bool:
        word = text.lower()
        if word not in (*TRUE, *FALSE):
            raise ValueError(f"must be {_KINDS[bool]}, got {reprlib.repr(text)}")
        return word in TRUE
    _check_choice(flag, text)
    if flag.parse is not None:
        return flag.parse(text)
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"must be {_KINDS[kind]}, got {reprlib.repr(text)}") from None


def from_toml(kind: type[Any], flag: Flag, value: object, folder: Path) -> object:
    """Returns the value that a file's value stands for, of a repeated flag a list's. A relative
    path starts from `folder`. Raises ValueError, with what it must be.
    """
    if flag.is_repeated:
        if not isinstance(value, list):
            raise ValueError(f"must be a list, got {reprlib.repr(value)}")
        one = flag._replace(is_repeated=False)
        return tuple(from_toml(kind, one, each, folder) for each in value)
    of_toml = {bool: (bool,), int: (int,), float: (int, float)}.get(kind, (str,))
    if type(value) not in of_toml:
        raise ValueError(f"must be {_KINDS.get(kind, 'a text')}, got {reprlib.repr(value)}")
    _check_choice(flag, value)
    if flag.parse is not None:
        return flag.parse(str(value))
    if issubclass(kind, Path):
        if not value:
            raise ValueError("must not be empty")
        return folder / str(value)
    try:
        return kind(value)
    except OverflowError:
        raise ValueError("is too large a number") from None


def _check_choice(flag: Flag, value: object) -> None:
    if flag.choices is not None and value not in flag.choices:
        raise ValueError(f"must be one of {', '.join(flag.choices)}, got {reprlib.repr(value)}")


def _shown(default: object) -> object:
    """Returns a default as help shows it."""
    if default is None or default == ():
        return "none"
    return ("no", "yes")[default] if isinstance(default, bool) else default


def _value_type(field_type: Any, flag: Flag) -> type[Any]:
    """Returns the type of one value. That of an optional field is what it holds if anything, that
    of a repeated one what its sequence holds.
    """
    inner = [each for each in get_args(field_type) if each is not NoneType]
    is_optional = NoneType in get_args(field_type)
    value_type: type[Any] = inner[0] if is_optional or flag.is_repeated else field_type
    return value_type


def _converter(parse: Callable[[str], object]) -> Callable[[str], object]:
    """Returns an argparse type that keeps the parser's own message of what is wrong."""

    def convert(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert
