"""How much of the compute bound the deadlines of the tokens leave: a limit for every policy that is
late with nobody, even one that knows all arrivals and output lengths beforehand. Seconds.

Each token of a stream comes with an iteration of its own, and an iteration costs something before
it computes anything. How few iterations are enough is a covering problem (token k of a stream wants
k of them to end between its arrival and its deadline), which is solved by running each as late as
any deadline allows: streams share what they can share, and all slack is used.

It holds for profiles whose last segment has the least base and no cost for pairs of tokens, as the
published one: others may have chunks that cost less than is reckoned here. It is still too kind:
what a prompt costs more for being cut into chunks, and that iterations of 50 ms are too short for
the best chunks, is left out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from engine.deciding.latency import LatencyProfile
from loadgen.paper.load import most_efficient_chunk, pure_seconds
from loadgen.scoring.score import token_due_s
from loadgen.workload.plan import PlannedRequest


def least_iterations(requests: Sequence[PlannedRequest]) -> int:
    """Returns the fewest iterations with which every token of every stream can come in time."""
    wanted = sorted(
        (r.at + token_due_s(r.targets, k), r.at, k)
        for r in requests
        if r.targets.tbt is not None
        for k in range(1, r.output_len + 1)
    )
    ends: list[float] = []  # in order, as the deadlines are
    for due, arrived_at, count in wanted:
        missing = count - (len(ends) - bisect_right(ends, arrived_at))
        ends += [due] * missing
    return len(ends)


def least_seconds(profile: LatencyProfile, requests: Sequence[PlannedRequest]) -> float:
    """Returns the least seconds of engine time for the requests: those of the work alone, and those
    of the iterations beyond what its prefills need. Raises ValueError for a profile for which that
    is no limit (see above).
    """
    *segments, last = profile.segments
    if last.prefill_pairs or any(each.base < last.base for each in segments):
        raise ValueError(f"profile {profile.name}: chunks may cost less than is reckoned here")
    pure = sum(pure_seconds(profile, r.prompt_len, r.output_len) for r in requests)
    for_prefills = sum(r.prompt_len for r in requests) / most_efficient_chunk(profile)
    more = max(0.0, least_iterations(requests) - for_prefills)
    return pure + more * max(0.0, last.base)
