"""Whoever replays the journal knows what is cached, whatever happens in between."""

from __future__ import annotations

from array import array
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.deciding.plan import NOT_FINITE, Token
from engine.deciding.prefix_index import PrefixIndex
from engine.deciding.prefix_journal import (
    COUNT_FROM,
    MOST_KEPT,
    PART,
    SHIFT,
    Cached,
    CacheEvent,
    Dropped,
    PrefixJournal,
)
from engine.deciding.sequence import FinishReason
from tests.engine.deciding.parts import deadline, interactive, make_request, make_scheduler

SIZE = 4
PROMPTS = [[*range(length)] for length in (3, 4, 9, 17, 30)] + [
    [7, *range(1, length)] for length in (12, 25)
]
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "submit", "run", "run", "run", "cancel", "spoil", "look"]),
        st.integers(0, 50),
    ),
    max_size=40,
)


class Follower:
    """Knows what it was told."""

    def __init__(self) -> None:
        self.pages: dict[bytes, Cached] = {}
        self.number = 0

    def begin(self, index: PrefixIndex) -> None:
        """Takes what it has missed, or all there is, in parts."""
        assert index.journal is not None
        state = index.journal.state(self.number)
        if state.missed is not None:
            for batch in state.missed:
                self.follow(batch.number, batch.events)
        else:
            self.pages.clear()
            serial = 0
            while part := index.journal.part(serial, state.until):
                self.pages |= {page.hash: page for page in part}
                serial = part[-1].serial
            assert len(self.pages) <= state.num_pages
        self.number = state.number

    def follow(self, number: int, events: tuple[CacheEvent, ...]) -> None:
        if self.number:
            assert number == self.number + 1
        self.number = number
        for event in events:
            if isinstance(event, Dropped):
                self.pages.pop(event.hash, None)
            else:
                assert event.hash not in self.pages
                self.pages[event.hash] = event


def known(index: PrefixIndex) -> set[bytes]:
    return set(index._page_of)


@settings(max_examples=60, deadline=None)
@given(OPERATIONS, st.integers(0, 20))
def test_a_replay_gives_what_is_cached(operations: list[tuple[str, int]], joins_at: int) -> None:
    """One follows from the first, one joins later and goes away now and then; memory is short, so
    that pages are dropped, and logits may be spoiled, by which a prompt's pages are withdrawn.
    """
    scheduler = make_scheduler(num_pages=12, page_size=SIZE, prefix_caching=True)
    index, first, later = scheduler.prefixes, Follower(), Follower()
    index.watch(True, now=0.0)
    first.begin(index)
    now, names, is_away = 0.0, 0, True
    for step, (operation, value) in enumerate(operations):
        if operation == "submit":
            names += 1
            targets = (interactive(0.5, 0.05), deadline(1.0))[value % 2]
            prompt = PROMPTS[value % len(PROMPTS)]
            tenant = ("", "acme")[value % 3 == 0]
            request = make_request(f"r{names}", prompt, 3, now, targets, tenant=tenant)
            scheduler.submit(request, now)
        elif operation == "cancel" and scheduler.roster.sequences:
            names_now = [*scheduler.roster.sequences]
            scheduler.cancel(names_now[value % len(names_now)], FinishReason.CANCELLED, now)
        elif operation in ("run", "spoil") and (plan := scheduler.plan(now)) is not None:
            now += plan.predicted_s
            token = Token(NOT_FINITE if operation == "spoil" else 0)
            scheduler.commit(plan, [token] * len(plan.sampling), now)
        scheduler.check()
        assert index.journal is not None
        batch = index.journal.take()
        if batch is not None:
            first.follow(batch.number, batch.events)
            if not is_away:
                later.follow(batch.number, batch.events)
        assert set(first.pages) == known(index)
        if operation == "look" or step == joins_at:
            is_away = not is_away
            if not is_away:
                later.begin(index)
        if not is_away:
            assert set(later.pages) == known(index)


def test_what_is_told_are_the_tokens_of_each_page_and_those_before_it() -> None:
    index = PrefixIndex(SIZE)
    index.watch(True, now=2.0)
    request = make_request(prompt=[*range(10, 20)], tenant="acme")
    index.add(request, [5, 6, 7], 0, 6)
    index.add(request, [5, 6, 7], 6, 10)
    assert index.journal is not None
    batch = index.journal.take()
    assert batch is not None
    assert batch.number == (2000 << SHIFT) + COUNT_FROM + 1
    first, second = batch.events
    assert isinstance(first, Cached)
    assert isinstance(second, Cached)
    assert (first.tenant, first.first, first.parent) == ("acme", 10, None)
    assert first.tokens(SIZE) == [10, 11, 12, 13]
    assert second.parent == first.hash
    assert array("I", second.window).tolist() == [11, 12, 13, 14, 15, 16, 17]
    assert second.tokens(SIZE) == [14, 15, 16, 17]
    index.remove(6)
    batch = index.journal.take()
    assert batch is not None
    assert batch.events == (Dropped("acme", second.hash, 1, 10),)
    assert index.journal.take() is None


def test_what_was_cached_before_is_told_once_a_prompt_shares_it() -> None:
    """Nobody else has its tokens. That it goes unheard of is nobody's loss."""
    index = PrefixIndex(SIZE)
    shared, other = make_request("a", [*range(12)]), make_request("b", [*range(50, 62)])
    index.add(shared, [1, 2, 3], 0, 12)
    index.add(other, [4, 5, 6], 0, 12)
    index.watch(True, now=0.0)
    index.remove(6)
    assert index.journal is not None
    assert index.journal.take() is None
    longer = make_request("c", [*range(16)])
    index.add(longer, [1, 2, 3, 7], 12, 16)
    batch = index.journal.take()
    assert batch is not None
    pages = [event for event in batch.events if isinstance(event, Cached)]
    assert [page.tokens(SIZE)[0] for page in pages] == [0, 4, 8, 12]
    assert len(index.journal) == 4
    index.watch(False, now=1.0)
    assert index.journal is None


def test_a_long_state_comes_in_parts_and_old_batches_are_dropped() -> None:
    journal: Any = PrefixJournal(1, now=0.0)
    hashes = [number.to_bytes(4) for number in range(PART + 10)]
    request = make_request(prompt=range(PART + 10))
    page_of = dict.fromkeys(hashes, 0)
    journal.known(request, hashes, page_of)
    assert journal.state(0).until == 0, "what has not been taken is in a batch to come"
    taken = journal.take()
    state = journal.state(0)
    assert (state.number, state.num_pages) == (taken.number, PART + 10)
    part = journal.part(0, state.until)
    assert len(part) == PART
    journal.forgotten(hashes[-1])
    assert len(journal.part(part[-1].serial, state.until)) == 9
    assert journal.state(taken.number - 1).missed == (taken,)
    while journal.state(taken.number - 1).missed is not None:
        journal.known(request, hashes, page_of)
        for hash_ in hashes:
            journal.forgotten(hash_)
        journal.take()
    assert sum(len(batch.events) for batch in journal._past) <= MOST_KEPT
    assert journal.state(journal._number + 1).missed is None, "a number of another journal"
