"""Which calls ended before the engine had their requests, told to its record in bounded number.

Under a flood nearly all calls are refused, and a refusal costs little. So in each second only the
first MOST_PER_S are told one by one; the rest are added up by what they have in common and told
when the second is over. There are no more sums than the operator has named tiers and tenants, for
each importance and reason. Instants in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from engine.deciding.entries import Unserved
from engine.deciding.outcome import Fate
from engine.deciding.request import Request, Sampling, key_of
from engine.tiers import UNREAD
from server.call import Call
from server.convert.inbound import Asked

MOST_PER_S = 20
SECOND = 1.0
_BYTES_PER_TOKEN = 4  # of a message, as tokenizers are in English

_Group = tuple[str, int, str, Fate, str]


class UnservedCalls:
    """`tell` hands what is to be told to the engine, and `later` has a function called that many
    seconds from now.
    """

    def __init__(
        self,
        tell: Callable[[Unserved], None],
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._tell = tell
        self._later = later
        self._num_told = 0  # in this second
        self._sums: dict[_Group, Unserved] = {}
        self._is_counting = False

    def add(self, call: Unserved) -> None:
        """Tells it, now or as a part of a sum."""
        if not self._is_counting:
            self._is_counting = True
            self._later(SECOND, self.flush)
        if self._num_told < MOST_PER_S:
            self._num_told += 1
            self._tell(call)
            return
        request = call.request
        common = request.tier, int(request.importance), request.share.name
        group = (*common, call.fate, call.reason)
        known = self._sums.get(group)
        self._sums[group] = call if known is None else _added(known, call)

    def flush(self) -> None:
        """A second is over: tells the sums."""
        sums, self._sums = self._sums, {}
        self._num_told, self._is_counting = 0, False
        for each in sums.values():
            self._tell(each)


def _added(known: Unserved, call: Unserved) -> Unserved:
    """Returns both as one that has no name, with the means of their lengths."""
    count, new = known.num_calls + 1, call.request

    def mean(before: int, after: int) -> int:
        return max(1, round((before * known.num_calls + after) / count))

    old = known.request
    prompt_len = mean(len(old.prompt), len(new.prompt))
    max_tokens = mean(old.sampling.max_tokens, new.sampling.max_tokens)
    tenant = old.share.name  # of those that the operator has not named, nobody in particular
    request = replace(
        old,
        id=key_of(tenant, ""),
        prompt=range(prompt_len),
        sampling=Sampling(max_tokens=max_tokens),
        tenant=tenant,
        application="",
        trace_id="",
    )
    return Unserved(request, known.fate, known.reason, "", call.until, count)


def unserved(call: Call, default_max_tokens: int, now: float) -> list[Unserved]:
    """Returns what is to be told of a call that is over: nothing where the engine had its requests,
    or it was no arrival; else one for each of its completions.
    """
    fate = call.fate
    if fate is None or call.is_admitted:
        return []
    reason = call.outcome.lower() if call.refusal is None else call.refusal.value
    asked = call.asked if call.entry is not None else None
    n = 1 if asked is None else asked.n
    requests = [_request(call, asked, default_max_tokens, None if n == 1 else i) for i in range(n)]
    return [Unserved(each, fate, reason, call.error, now) for each in requests]


def _request(
    call: Call, asked: Asked | None, default_max_tokens: int, completion: int | None
) -> Request:
    """Returns what the engine would have been given, with the length of the prompt as far as it is
    known.
    """
    key = key_of(call.tenant, call.request_id, completion)
    trace_id = "" if call.trace is None else call.trace.trace_id
    estimated_len = max(1, call.num_bytes // _BYTES_PER_TOKEN)
    if asked is None:
        unread = Request(
            key,
            range(estimated_len),
            Sampling(max_tokens=default_max_tokens),
            call.arrived_at,
            tier=UNREAD,
            tenant=call.tenant,
            share=call.share,
            trace_id=trace_id,
        )
        known = call.quality
        if known is None:
            return unread
        return replace(unread, targets=known.targets, importance=known.importance, tier=known.tier)
    quality = asked.quality
    max_tokens = default_max_tokens if asked.max_tokens is None else asked.max_tokens
    return Request(
        key,
        range(len(asked.input.token_ids) or estimated_len),
        Sampling(max_tokens=max(1, max_tokens)),
        call.arrived_at,
        quality.targets,
        quality.importance,
        quality.tier,
        asked.application,
        asked.tenant,
        quality.source.value,
        asked.share,
        timeout_s=asked.timeout_s,
        trace_id=trace_id,
    )
