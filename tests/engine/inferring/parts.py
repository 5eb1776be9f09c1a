"""Calls as they come to and end at a server, for tests of what is inferred from them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from hypothesis import strategies as st

from engine.inferring.calls import CallSite, Coming, End, Ended, site_of
from engine.inferring.habit import Habit, Need

UNARY = site_of("", "", "nightly", is_stream=False)
STREAM = site_of("", "", "desk", is_stream=True)


def ended(
    end: End = End.SERVED,
    timeout_s: float = math.inf,
    silence_s: float = 0.2,
    output_len: int = 20,
    coming: Coming = Coming(),  # noqa: B008  # a value
) -> Ended:
    """A call that is over."""
    return Ended(end, timeout_s, silence_s, output_len, coming)


def habit_of(site: CallSite, calls: Iterable[Ended]) -> Habit:
    """The habit of a site with these calls."""
    habit = Habit(site.is_stream)
    for call in calls:
        habit.observe(call)
    return habit


def need_of(site: CallSite, calls: Iterable[Ended]) -> Need:
    """What a site with these calls needs, of which enough is known."""
    need = habit_of(site, calls).need
    assert need is not None
    return need


seconds = st.floats(0.001, 2000.0)
endings = st.builds(
    Ended,
    st.sampled_from(End),
    st.one_of(seconds, st.just(math.inf)),
    seconds,
    st.integers(0, 5000),
    st.builds(Coming, st.booleans(), st.booleans(), st.floats(0, 1e4)),
)
sites = st.builds(
    CallSite,
    st.sampled_from(["", "acme", "zeta"]),
    st.sampled_from(["", "a", "b"]),
    st.sampled_from(["", "chat", "nightly"]),
    st.booleans(),
    st.sampled_from(["", "app"]),
    st.sampled_from(["", "no deadline, no max_tokens"]),
)
