"""What other routers do, with the same arguments: the indices of the replicas, the best first.

The scores of `least_load` and `power_of_two` and the rule of `cache_aware` are those of SMG
(Shepherd Model Gateway 1.13, its documentation of load balancing), with its defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from engine.routing.states import Asked, Moment, Replica

KV_PRESSURE_S: Final = 0.15  # seconds that full memory counts for, by usage / (1 - usage)
USUAL_TOKENS_PER_S: Final = 2000.0  # of a replica that has told nothing
MOST_APART, MOST_RATIO = 64, 1.5  # calls in flight, beyond which affinity gives way to balance
LEAST_MATCH: Final = 0.3  # of the prompt, for affinity

Ranking = Callable[[Asked, Sequence[Replica], Moment], list[int]]


def round_robin(asked: Asked, replicas: Sequence[Replica], moment: Moment) -> list[int]:
    """Takes the replicas in turn."""
    num = len(replicas)
    return [(moment.turn + i) % num for i in range(num)]


def least_requests(asked: Asked, replicas: Sequence[Replica], moment: Moment) -> list[int]:
    """Takes the replica with the fewest calls in flight, the first among equals."""
    return sorted(range(len(replicas)), key=lambda i: replicas[i].num_in_flight)


def least_load(asked: Asked, replicas: Sequence[Replica], moment: Moment) -> list[int]:
    """Takes the replica that would have computed its queue soonest, by the speed of its prefills as
    they come, with a penalty for full memory. The queue is what would repel: not what was
    relegated, and no best effort.
    """
    scores = [_drain_s(replica, moment.now, with_backlog=False) for replica in replicas]
    return sorted(range(len(replicas)), key=scores.__getitem__)


def least_tokens(asked: Asked, replicas: Sequence[Replica], moment: Moment) -> list[int]:
    """Takes what `least_load` would, were the backlog told as a part of the queue."""
    scores = [_drain_s(replica, moment.now, with_backlog=True) for replica in replicas]
    return sorted(range(len(replicas)), key=scores.__getitem__)


def power_of_two(asked: Asked, replicas: Sequence[Replica], moment: Moment) -> list[int]:
    """Takes the better, as `least_load` has it, of two that chance has drawn."""
    num = len(replicas)
    if num < 2:
        return list(range(num))
    pair = int(moment.draw * num * (num - 1))
    one, step = divmod(pair, num - 1)
    other = (one + 1 + step) % num
    drawn = [i for i in least_load(asked, replicas, moment) if i in (one, other)]
    return [*drawn, *(i for i in range(num) if i not in drawn)]


def cache_aware(asked: Asked, replicas: Sequence[Replica], moment: Moment) -> list[int]:
    """Takes the replica that holds most of the prompt, where that is LEAST_MATCH of it and calls
    are spread evenly enough; else the one with the fewest calls, and of these who holds least.
    """
    calls = [replica.num_in_flight for replica in replicas]
    least, most = min(calls, default=0), max(calls, default=0)
    is_even = most - least <= MOST_APART or most <= MOST_RATIO * least

    def place(i: int) -> tuple[int, int, int]:
        held = replicas[i].cached_len
        counts = is_even and held > LEAST_MATCH * asked.prompt_len
        return (-held if counts else 0, calls[i], replicas[i].known_len)

    return sorted(range(len(replicas)), key=place)


def _drain_s(replica: Replica, now: float, with_backlog: bool) -> float:
    told = replica.told
    if told is None or not replica.is_known(now):
        return replica.num_in_flight * 1024 / USUAL_TOKENS_PER_S
    queued = told.waiting_tokens + (told.backlog_tokens if with_backlog else 0)
    usage = min(0.999, told.kv_held if with_backlog else told.kv_usage)
    tokens = queued + replica.sent_tokens
    return tokens * told.prefill_s * told.slowdown + KV_PRESSURE_S * usage / (1 - usage)
