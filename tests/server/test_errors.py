"""When a caller that is refused is told to try again."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from server.errors import MOST_RETRY_AFTER_S, rejected, waited_too_long


@given(st.floats())
def test_nobody_is_told_to_try_again_at_once_or_in_an_hour(retry_s: float) -> None:
    for error in (rejected("full", retry_s), waited_too_long("full", retry_s)):
        for each in (error, pickle.loads(pickle.dumps(error))):
            told = each.detail.retry_delay.ToTimedelta().total_seconds()
            assert 1 <= told == each.retry_after_s <= MOST_RETRY_AFTER_S
            assert not 1 <= retry_s <= MOST_RETRY_AFTER_S or retry_s <= told < retry_s + 1
