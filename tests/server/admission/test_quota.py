"""What may be in hand at once, and whose turn it is."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.admission.quota import Caller, Quota, Turns
from server.errors import CallError

tenants = st.sampled_from(["a", "b", "c"])


def of(tenant: str) -> Caller:
    """One that the operator has named."""
    return Caller(tenant, tenant)


@settings(deadline=None)
@given(st.lists(st.tuples(tenants, st.integers(1, 40), st.booleans()), max_size=40))
def test_no_more_is_held_than_the_whole_nor_by_a_tenant_than_half(
    steps: list[tuple[str, int, bool]],
) -> None:
    quota, held = Quota("bytes", 60), list[tuple[str, int, ExitStack]]()
    for tenant, amount, ends in steps:
        of_tenant = sum(size for each, size, _ in held if each == tenant)
        total = sum(size for _, size, _ in held)
        stack = ExitStack()
        if total + amount > 60 or of_tenant + amount > 30:
            with pytest.raises(CallError, match="bytes"):
                stack.enter_context(quota.hold(of(tenant), amount))
        else:
            stack.enter_context(quota.hold(of(tenant), amount))
            held.append((tenant, amount, stack))
        if ends and held:
            held.pop(0)[2].close()
        assert quota.total == sum(size for _, size, _ in held)


def test_what_fits_in_any_case_fits_one_tenant_s_share() -> None:
    quota = Quota("bytes", 10, least=8)
    with quota.hold(of("a"), 8), pytest.raises(CallError):
        quota.hold(of("a"), 1).__enter__()
    with quota.hold(of("a"), 8):
        pass


@settings(deadline=None)
@given(st.lists(st.tuples(tenants, st.integers()), max_size=40))
def test_tenants_take_turns_and_each_keeps_its_order(puts: list[tuple[str, int]]) -> None:
    turns: Turns[tuple[str, int, int]] = Turns()
    for index, (tenant, value) in enumerate(puts):
        turns.put(of(tenant), (tenant, index, value))
    taken = []
    waiting = Counter(tenant for tenant, _ in puts)
    while turns:
        taken.append(turns.take())
        tenant = taken[-1][0]
        waiting[tenant] -= 1
        since = [t for t, _, _ in taken]
        for other, count in waiting.items():  # whoever waits is served between two of another's
            if other != tenant and count and since.count(tenant) > 1:
                last = len(since) - 1 - since[::-1].index(tenant)
                earlier = len(since[:last]) - 1 - since[:last][::-1].index(tenant)
                assert other in since[earlier:last]
    for tenant in waiting:
        own = [index for each, index, _ in taken if each == tenant]
        assert own == sorted(own)
    assert len(taken) == len(puts)


def test_what_is_put_back_is_next_and_what_is_dropped_is_gone() -> None:
    turns: Turns[int] = Turns()
    for tenant, item in (("a", 1), ("a", 2), ("b", 3)):
        turns.put(of(tenant), item)
    assert turns.take() == 1
    turns.put_back(of("a"), 1)
    turns.drop(of("a"), 2)
    turns.drop(of("c"), 9)
    assert [turns.take(), turns.take()] == [1, 3]
    assert not turns


def test_invented_tenants_have_one_turn_together_and_leave_a_quarter() -> None:
    """Sixty names of nobody's; a named tenant is next but one, and finds room."""
    turns: Turns[str] = Turns()
    for i in range(60):
        turns.put(Caller("", f"invented-{i}"), f"invented-{i}")
    for i in range(2):
        turns.put(of("acme"), f"acme-{i}")
    assert [turns.take() for _ in range(4)][1::2] == ["acme-0", "acme-1"]
    quota = Quota("bytes", 100)
    with ExitStack() as stack:
        for i in range(60):
            with suppress(CallError):
                stack.enter_context(quota.hold(Caller("", f"invented-{i}"), 2))
        assert quota.total == 74
        stack.enter_context(quota.hold(of("acme"), 26))
    assert vars(quota) == vars(Quota("bytes", 100)), "nothing is kept of who held something"
