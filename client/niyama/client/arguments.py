"""What an argument of a call must be.

Each check returns the value as the wire takes it, or raises InvalidRequest with the path of its
field. It checks whether a value can be sent at all and means what it seems to, since protobuf and
gRPC say that late, in their own ways, without the field's name, or not at all. Whether a value is
sensible is for the server to judge.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import NoReturn, SupportsFloat, cast

from google.protobuf.duration_pb2 import Duration

from niyama.client.errors import InvalidRequest

MOST_NAME_BYTES = 128  # of a tenant, as the server has it
MOST_DURATION_S = 315_576_000_000  # what google.protobuf.Duration may hold: 10,000 years
# gRPC counts nanoseconds since 1970 in 64 bits: beyond the year 2262 a deadline has passed at once.
MOST_TIMEOUT_S = 1e9


def text(value: object, field: str) -> str:
    """Returns a text that can be written in UTF-8. A lone surrogate, which Python makes of an
    argument's bytes that are no UTF-8, cannot.
    """
    if not isinstance(value, str):
        refuse(f"{field} is text, not {shown(value)}", field)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        at = f"{shown(value[error.start])} at {error.start}"
        refuse(f"{field} is no Unicode text: a lone surrogate, {at}", field)
    return value


def texts(value: object, field: str) -> list[str]:
    """Returns one text, or several in a sequence."""
    if isinstance(value, str):
        return [text(value, field)]
    return [text(each, field) for each in _items(value, field, "text or several")]


def whole(value: object, field: str) -> object:
    """Returns a whole number, as it is. Protobuf compares it with the field's range."""
    if not _is_whole(value):
        refuse(f"{field} is a whole number, not {shown(value)}", field)
    return value


def wholes(value: object, field: str) -> Sequence[object]:
    """Returns several whole numbers in a sequence, as they are."""
    items = _items(value, field, "several whole numbers")
    if not all(map(_is_whole, items)):
        wrong = next(each for each in items if not _is_whole(each))
        refuse(f"{field} are whole numbers, not {shown(wrong)}", field)
    return items


def _is_whole(value: object) -> bool:
    """Returns whether the value is a whole number: NumPy's are, True is not."""
    return hasattr(value, "__index__") and not isinstance(value, bool)


def number(value: object, field: str) -> float:
    """Returns a number, or what converts to one. A text does not."""
    if isinstance(value, bool | str | bytes | bytearray):
        refuse(f"{field} is a number, not {shown(value)}", field)
    try:
        return float(cast(SupportsFloat, value))
    except (TypeError, ValueError, OverflowError):
        refuse(f"{field} is a number, not {shown(value)}", field)


def truth(value: object, field: str) -> bool:
    """Returns True or False, NumPy's included."""
    if not (isinstance(value, bool) or type(value).__name__ == "bool_"):
        refuse(f"{field} is true or false, not {shown(value)}", field)
    return bool(value)


def duration(value: object, field: str) -> Duration:
    """Returns a finite number of seconds, to the nanosecond. The server judges whether it is
    positive.
    """
    seconds = number(value, field)
    if not abs(seconds) <= MOST_DURATION_S:
        refuse(f"{field} must be a number of seconds, got {seconds:g}", field)
    result = Duration()
    result.FromNanoseconds(round(seconds * 1e9))
    return result


def timeout(value: object) -> float | None:
    """Returns a positive number of seconds; None for no limit, which infinity stands for, too.

    A timeout that has passed already is refused.
    """
    if value is None:
        return None
    seconds = number(value, "timeout")
    if not seconds > 0:
        refuse(f"timeout must be a positive number of seconds, got {seconds:g}", "timeout")
    return seconds if seconds <= MOST_TIMEOUT_S else None


def tenant(value: object, key: str) -> str:
    """Returns a tenant's name that gRPC can carry beside a message, "" for none."""
    if value is None:
        return ""
    if not isinstance(value, str) or not (value.isascii() and value.isprintable()):
        refuse(f"a tenant is printable ASCII, got {shown(value)}", key)
    if len(value) > MOST_NAME_BYTES:
        refuse(f"a tenant has at most {MOST_NAME_BYTES} bytes, got {len(value)}", key)
    return value


def token(value: object) -> str:
    """Returns a token of one word that gRPC can carry. One that is refused is not shown."""
    is_word = isinstance(value, str) and value.isascii() and value.isprintable()
    if not isinstance(value, str) or not is_word or not value or " " in value:
        refuse("a token is one word of printable ASCII", "token")
    return value


def message(value: object, field: str) -> tuple[str, str]:
    """Returns the role and the content of a chat message."""
    if not isinstance(value, Mapping):
        refuse(f"a chat message has role and content, not {shown(value)}", field)
    if set(value) != {"role", "content"}:
        found = ", ".join(map(shown, value)) or "nothing"
        refuse(f"a chat message has role and content, not {found}", field)
    return text(value["role"], f"{field}.role"), text(value["content"], f"{field}.content")


def _items(value: object, field: str, wanted: str) -> Sequence[object]:
    """Returns the sequence itself. Bytes are refused: to Python they are a sequence of numbers, but
    not to who passes them.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray | memoryview):
        refuse(f"{field} is {wanted} in a sequence, not {shown(value)}", field)
    return value


def refuse(message: str, field: str) -> NoReturn:
    """Raises InvalidRequest."""
    raise InvalidRequest(message, field)


class _Short(reprlib.Repr):
    """Writes values short enough for an error message."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr_int(self, x: int, level: int) -> str:
        """Returns the number in digits, or its size: Python writes out none with thousands of
        digits.
        """
        bits = x.bit_length()
        return repr(x) if bits <= 256 else f"a number of {bits} bits"


def shown(value: object) -> str:
    """Returns the value for an error message: as Python writes it, cut short."""
    return _Short().repr(value)
