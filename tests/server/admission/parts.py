"""Calls and queues that the tests of admission begin with."""

from __future__ import annotations

from engine.deciding.request import EVERYBODY_ELSE, Importance, Share
from server.admission.admission import Admission
from server.admission.places import Entry
from server.errors import Refusal, Refused

LOW, NORMAL, HIGH = Importance.LOW, Importance.NORMAL, Importance.HIGH
PLENTY = 10**9  # tokens


def entry(
    name: str,
    importance: Importance = NORMAL,
    share: str = "",
    n: int = 1,
    tokens: int = 10,
    weight: float = 1.0,
) -> Entry:
    """Of a tenant that is called as its share."""
    of = Share(share, weight) if share else EVERYBODY_ELSE
    return Entry(share, name, of, "chat", importance, n, tokens)


def filled(size: int, max_tokens: int = PLENTY, started: bool = False, **calls: int) -> Admission:
    """`calls`: how many of each share."""
    admission = Admission(size, max_tokens)
    for share, count in calls.items():
        for i in range(count):
            admission.admit(entry(f"{share}{i}", NORMAL, share), 0.0)
            if started:
                admission.start((share, f"{share}{i}"))
    return admission


def refused(admission: Admission, asks: Entry, now: float = 0.0) -> Refusal | None:
    """Why; None where it is admitted."""
    try:
        admission.admit(asks, now)
    except Refused as error:
        return error.refusal
    return None


def names(entries: list[Entry]) -> list[str]:
    return [each.request_id for each in entries]
