"""Which refused calls are told one by one, and which as sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from engine.deciding.entries import Unserved
from engine.deciding.outcome import Fate
from engine.deciding.request import Request, Sampling, Share, key_of
from server.unserved import MOST_PER_S, UnservedCalls

REQUEST = Request("", range(10), Sampling(max_tokens=4), 1.0, tier="chat", application="mail")


def refused(index: int, tenant: str = "t", share: str = "") -> Unserved:
    request = replace(REQUEST, id=key_of(tenant, f"r{index}"), tenant=tenant, share=Share(share))
    return Unserved(request, Fate.REFUSED, "queue_full", "it is full", 2.0)


class Second:
    """Calls that come within one second."""

    def __init__(self) -> None:
        self.told: list[Unserved] = []
        self._ends: list[Callable[[], None]] = []
        self.calls = UnservedCalls(self.told.append, lambda _, then: self._ends.append(then))

    def end(self) -> None:
        (end,) = self._ends
        end()


@pytest.mark.parametrize("more", [0, 1])
def test_few_are_told_one_by_one(more: int) -> None:
    """One more than that is no sum: it keeps its name."""
    second = Second()
    calls = [refused(index) for index in range(MOST_PER_S + more)]
    for call in calls:
        second.calls.add(call)
    assert second.told == calls[:MOST_PER_S]
    second.end()
    assert second.told == calls


@pytest.mark.parametrize("share", ["", "acme"])
def test_a_flood_is_told_by_what_it_has_in_common(share: str) -> None:
    second = Second()
    for index in range(MOST_PER_S + 7):
        second.calls.add(refused(index, share or f"t{index}", share))
    second.end()
    *_, flood = second.told
    assert len(second.told) == MOST_PER_S + 1
    assert (flood.num_calls, flood.detail) == (7, "")
    assert flood.request.id == key_of(share, "")
    assert (flood.request.tenant, flood.request.application) == (share, "")
    assert (flood.request.tier, len(flood.request.prompt)) == ("chat", 10)
