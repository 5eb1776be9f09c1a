"""Page accounting against a model that is too simple to be wrong: dicts, lists and one clock."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.deciding.pages import PagePool
from engine.deciding.prefix_index import PACKED
from engine.deciding.sequence import Sequence
from tests.engine.deciding.parts import decode, make_sequence

NUM_PAGES, SIZE = 6, 2
Prefix = tuple[str, tuple[int, ...]]  # tenant, and all prompt tokens up to a page's end


def cached_prefix(pool: PagePool, sequence: Sequence) -> int:
    """How many prompt tokens the sequence would share, leaving no trace."""
    return len(pool.index.find(sequence.request)) * pool.page_size


class Pages(RuleBasedStateMachine):
    """Sequences grow, compute, publish and leave; the model knows what each page holds.

    Positions are computed in order, as the scheduler does, and only as far as pages reach.
    """

    @initialize(prefix_caching=st.booleans())
    def start(self, prefix_caching: bool) -> None:
        self.pool = PagePool(NUM_PAGES, SIZE, prefix_caching)
        self.caching = prefix_caching
        self.live: list[Sequence] = []
        self.num_computed: dict[Sequence, int] = {}
        self.num_made = 0
        self.content: dict[int, Prefix] = {}  # what a page that was published holds
        self.unshared: set[Sequence] = set()  # withdrawn
        self.left_at: dict[int, int] = {}  # of published pages without readers: when the last left
        self.time = 0

    def readers(self, page: int) -> list[Sequence]:
        return [s for s in self.live if page in s.pages]

    def prefix(self, sequence: Sequence, index: int) -> Prefix:
        tokens = sequence.tokens(0, (index + 1) * SIZE)
        return sequence.request.tenant, tuple(tokens)

    @precondition(lambda self: len(self.live) < 5)
    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=9), tenant=st.sampled_from("ab"))
    def attach(self, prompt: list[int], tenant: str) -> None:
        """Shares the longest run of published pages of this tenant, but never the whole prompt."""
        self.num_made += 1
        sequence = make_sequence(f"r{self.num_made}", prompt=prompt, tenant=tenant)
        known = {v: page for page, v in self.content.items()}
        expected: list[int] = []
        while (len(expected) + 1) * SIZE < len(prompt):
            page = known.get(self.prefix(sequence, len(expected)))
            if page is None:
                break
            expected.append(page)
        assert cached_prefix(self.pool, sequence) == len(expected) * SIZE
        assert self.pool.attach(sequence) == len(expected) * SIZE
        assert sequence.pages == expected
        self.num_computed[sequence] = len(expected) * SIZE
        for page in expected:
            self.left_at.pop(page, None)
        self.live.append(sequence)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), count=st.integers(1, 6))
    def grow_and_compute(self, data: st.DataObject, count: int) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        start = self.num_computed[sequence]
        stop = start + count
        before, missing = list(sequence.pages), -(-stop // SIZE) - len(sequence.pages)
        unread = set(range(NUM_PAGES)) - {p for s in self.live for p in s.pages}
        granted = self.pool.grow(sequence, stop)
        assert granted == (missing <= len(unread)), "granted whenever there is room, all or nothing"
        if not granted:
            assert sequence.pages == before
            return
        assert sequence.pages[: len(before)] == before
        taken = sequence.pages[len(before) :]
        assert set(taken) <= unread
        assert self.pool.take_fresh() == tuple(taken[-1:])
        self.expect_oldest_evicted(taken, unread)
        self.num_computed[sequence] = stop
        for index in range(start // SIZE, (stop - 1) // SIZE + 1):
            page = sequence.pages[index]
            assert self.readers(page) == [sequence], "a page has one writer"
            assert page not in self.content, "a published page is never written again"
        self.pool.publish(sequence, start, stop)
        if self.caching and sequence not in self.unshared:
            self.note_published(sequence, start)

    def expect_oldest_evicted(self, taken: list[int], unread: set[int]) -> None:
        """Free pages go first, then published ones, those first whose readers left first."""
        evicted = [p for p in taken if p in self.content]
        blank = unread - set(self.content)
        assert not evicted or blank <= set(taken), "evicted although a page was free"
        oldest = sorted(self.left_at, key=self.left_at.__getitem__)
        assert set(evicted) == set(oldest[: len(evicted)])
        for page in evicted:
            del self.content[page], self.left_at[page]

    def note_published(self, sequence: Sequence, start: int) -> None:
        """Pages become known when they become full: not later, when an equal one was evicted."""
        full = min(self.num_computed[sequence], len(sequence.request.prompt)) // SIZE
        for index in range(start // SIZE, full):
            prefix = self.prefix(sequence, index)
            if prefix not in self.content.values():
                self.content.setdefault(sequence.pages[index], prefix)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        self.live.remove(sequence)
        for page in reversed(sequence.pages):
            if page in self.content and not self.readers(page):
                self.time += 1
                self.left_at[page] = self.time
        self.pool.release(sequence)
        self.pool.forget(sequence.id)
        assert sequence.pages == []

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        """Its prompt is known no more, whoever computed it; who reads it reads on."""
        sequence = data.draw(st.sampled_from(self.live))
        self.pool.withdraw(sequence.request)
        if sequence not in self.unshared:
            prompt = sequence.request.prompt
            own = {self.prefix(sequence, i) for i in range(len(prompt) // SIZE)}
            for page in [page for page, prefix in self.content.items() if prefix in own]:
                del self.content[page]
                self.left_at.pop(page, None)
        self.unshared.add(sequence)
        assert cached_prefix(self.pool, sequence) == 0

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        while self.live:
            self.pool.release(self.live.pop())
        self.pool.check([])
        assert self.pool.num_available == NUM_PAGES, "all pages are free at the end"

    @invariant()
    def accounts_agree(self) -> None:
        self.pool.check(self.live)
        owned = {p for s in self.live for p in s.pages}
        assert self.pool.num_available == NUM_PAGES - len(owned)
        assert self.pool.num_cached == len(self.content)


TestPages = Pages.TestCase
TestPages.settings = settings(
    max_examples=150, stateful_step_count=25, deadline=None, derandomize=True
)


def test_a_tenant_never_sees_what_another_has_computed() -> None:
    pool = PagePool(8, 4, prefix_caching=True)
    mine = make_sequence("mine", prompt=12, tenant="a")
    pool.grow(mine, 12)
    pool.publish(mine, 0, 12)
    assert cached_prefix(pool, make_sequence("same", prompt=13, tenant="a")) == 12
    assert cached_prefix(pool, make_sequence("other", prompt=13, tenant="b")) == 0


def test_a_cached_page_that_nobody_reads_is_still_taken_from_what_is_available() -> None:
    """A prompt of 13 needs 4 pages of 4. While its first 3 are read, 1 is missing; once they are
    idle they count among the available, and all 4 are.
    """
    pool = PagePool(8, 4, prefix_caching=True)
    first, same = make_sequence("first", prompt=13), make_sequence("same", prompt=13)
    assert pool.num_missing(same.request, 13) == 4
    pool.grow(first, 13)
    pool.publish(first, 0, 13)
    assert pool.num_missing(same.request, 13) == 1
    pool.release(first)
    assert pool.num_missing(same.request, 13) == 4
    before = pool.num_available
    pool.attach(same)
    pool.grow(same, 13)
    assert before - pool.num_available == 4


def test_one_prompt_token_is_always_left_to_compute() -> None:
    """The sampled token needs the last position's output, which no cached page holds."""
    pool = PagePool(8, 4, prefix_caching=True)
    first = make_sequence("first", prompt=8)
    pool.grow(first, 8)
    pool.publish(first, 0, 8)
    assert cached_prefix(pool, make_sequence("same", prompt=8)) == 4


@pytest.mark.parametrize("num_same", [0, 1, PACKED - 1, PACKED, PACKED + 1, 2 * PACKED, 3 * PACKED])
def test_long_prompts_share_the_pages_up_to_where_they_differ(num_same: int) -> None:
    """The tokens of a few pages are packed at once, and no hash may depend on which these are."""
    pool = PagePool(100, SIZE, prefix_caching=True)
    length = 3 * PACKED * SIZE + 1
    old = make_sequence("old", prompt=[0] * length)
    pool.grow(old, length)
    pool.publish(old, 0, length)
    new = make_sequence("new", prompt=[0] * (num_same * SIZE) + [1] * (length - num_same * SIZE))
    assert pool.num_cached_of(new.request) == num_same * SIZE
    assert pool.attach(new) == num_same * SIZE


def test_output_tokens_are_not_published() -> None:
    """Only prompts are shared: 6 prompt tokens fill one page of 4, whatever is computed after."""
    pool = PagePool(8, 4, prefix_caching=True)
    sequence = make_sequence("first", prompt=6)
    decode(sequence, 2)
    pool.grow(sequence, 8)
    pool.publish(sequence, 0, 8)
    assert pool.num_cached == 1


def test_the_pages_of_a_prefix_are_evicted_from_its_end() -> None:
    """The start of a prompt is worth most: it is shared by most."""
    pool = PagePool(3, 1, prefix_caching=True)
    old, new = make_sequence("old", prompt=[1, 2, 3]), make_sequence("new", prompt=[7])
    pool.grow(old, 3)
    pool.publish(old, 0, 3)
    pages = list(old.pages)
    pool.release(old)
    pool.grow(new, 1)
    assert new.pages == pages[2:]
    assert cached_prefix(pool, make_sequence("again", prompt=[1, 2, 3, 4])) == 2
    assert pool.num_evictions == 1


@pytest.mark.parametrize(("num_pages", "page_size"), [(0, 16), (4, 0)])
def test_a_pool_without_memory_is_refused(num_pages: int, page_size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        PagePool(num_pages, page_size)
