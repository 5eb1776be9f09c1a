"""What is wrong with a request, field by field, short enough for any status to carry."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from server.bounded import shorten

MAX_VIOLATIONS = 16  # told by name; of the others, their number
MAX_FIELD_BYTES = 128
MAX_DESCRIPTION_BYTES = 512
# Of all of them: once more as the status's message and in base64 they stay below gRPC's 8 KiB.
MAX_TOLD_BYTES = 2048


class Violation(NamedTuple):
    """One rule that a request breaks. `field` is the field's path in the message; "" means the
    message itself.
    """

    field: str
    description: str


class InvalidRequest(ValueError):
    """The request breaks rules of the API: those in `violations`, and `num_more` others."""

    def __init__(self, violations: Iterable[Violation], num_more: int = 0) -> None:
        told: list[Violation] = []
        room = MAX_TOLD_BYTES
        for field, description in violations:
            short = Violation(
                shorten(field, MAX_FIELD_BYTES), shorten(description, MAX_DESCRIPTION_BYTES)
            )
            room -= sum(len(text.encode()) for text in short)
            if len(told) == MAX_VIOLATIONS or room < 0:
                num_more += 1
            else:
                told.append(short)
        lines = [f"{v.field}: {v.description}" if v.field else v.description for v in told]
        if num_more:
            lines.append(f"and {num_more} more")
        super().__init__("; ".join(lines))
        self.violations = tuple(told)
        self.num_more = num_more

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles what was found, so that the error crosses to another process whole."""
        return InvalidRequest, (self.violations, self.num_more)


class Violations:
    """Collects violations, so that one answer names all of them. Of very many only some are kept,
    and the others counted.
    """

    def __init__(self) -> None:
        self._found: list[Violation] = []
        self._num_more = 0

    def __bool__(self) -> bool:
        return bool(self._found)

    def refuse(self, field: str, description: str) -> None:
        """Notes that the field breaks a rule."""
        if len(self._found) < MAX_VIOLATIONS:
            self._found.append(Violation(field, description))
        else:
            self._num_more += 1

    def finish(self) -> None:
        """Raises InvalidRequest where any were found."""
        if self._found:
            raise InvalidRequest(self._found, self._num_more)
