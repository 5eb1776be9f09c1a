"""Whether each tenant got what is its own: its part of the engine, and what that is worth.

Equal attainment is no fairness: where one tenant sends most of the load, all may be late alike, by
its doing. So each is held against what it would have without the others (the sharing incentive of
Ghodsi et al., "Dominant Resource Fairness", NSDI 2011: nobody is better off with its part alone).

* Fair share: a tenant's weight over the weights of all tenants that send something. Those of which
  no weight is known have one weight of 1 together, in equal parts, as in the scheduler.
* Offered: a tenant's part of the tokens, prompt and output, of all requests that count.
* Received: its part of the tokens that came in the measured part of the run; a prompt's come with
  the first token. Whoever receives a smaller part than it offers waits for others, which is fair
  only if it offers more than its fair share.
* Alone: the attainment that its requests have with its fair share of the engine alone. They are
  sent to the same engine as if all tenants were like this one: nobody else's, but at its rate over
  its share, other draws of the same load. With a share of 0.1 and 0.05 of the load that is half of
  the load. An engine of its own that is slower by the share would be the wrong measure: every
  prompt would take ten times as long there, hardly a request would be on time, and hardly anything
  unfair. A share is a part of the engine's time, not a slower engine.
* Worse by: how far its attainment in the run is below that, 0 where it is not.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from loadgen.scoring.score import Judgement
from loadgen.workload.plan import Workload

_TOGETHER = 1.0  # the weight of all tenants without one


class Portion(NamedTuple):
    """What one tenant got, as the module defines it. Shares of a whole, and of its requests."""

    tenant: str
    fair_share: float
    offered: float
    received: float
    attainment: float
    alone: float | None = None  # None: not measured

    @property
    def worse_by(self) -> float | None:
        """Returns how much more of its requests would be on time with its fair share alone."""
        return None if self.alone is None else max(0.0, self.alone - self.attainment)


def fair_shares(tenants: Iterable[str], weights: Mapping[str, float]) -> dict[str, float]:
    """Returns the fair share of each tenant."""
    names = list(tenants)
    num_without = sum(name not in weights for name in names)
    own = {name: weights.get(name, _TOGETHER / max(1, num_without)) for name in names}
    total = sum(own.values())
    return {name: weight / total for name, weight in own.items()}


def alone(workload: Workload, weights: Mapping[str, float]) -> Iterator[tuple[list[str], Workload]]:
    """Yields tenants with the load by which it is seen what the fair share of each is worth: those
    that differ in nothing but their names together. Raises ValueError where nothing arrives.
    """
    fair = fair_shares(workload.tenants, weights)
    alike: dict[float, list[str]] = {}
    for tenant, part in workload.tenants.items():
        alike.setdefault(round(part / fair[tenant], 9), []).append(tenant)
    for factor, tenants in alike.items():
        yield tenants, replace(workload.scaled(factor), tenants={tenants[0]: 1.0})


def portions(
    by_tenant: Mapping[str, Sequence[Judgement]],
    weights: Mapping[str, float],
    end_s: float,
    alone: Mapping[str, float],
) -> tuple[Portion, ...]:
    """Returns what each tenant got in a run whose measured part ended at `end_s`; `alone` is the
    attainment of those that ran by themselves.
    """
    fair = fair_shares(by_tenant, weights)
    offered = {name: sum(map(_offered, each)) for name, each in by_tenant.items()}
    received = {name: sum(_received(j, end_s) for j in each) for name, each in by_tenant.items()}
    all_offered, all_received = sum(offered.values()), sum(received.values())
    return tuple(
        Portion(
            name,
            fair[name],
            offered[name] / all_offered,
            received[name] / max(1, all_received),
            sum(each.on_time for each in by_tenant[name]) / len(by_tenant[name]),
            alone.get(name),
        )
        for name in sorted(by_tenant)
    )


def _offered(judgement: Judgement) -> int:
    request = judgement.record.request
    return request.prompt_len + request.output_len


def _received(judgement: Judgement, end_s: float) -> int:
    """Returns the tokens of the request that came before the end of the measured part."""
    num = bisect_left(judgement.record.token_at, end_s)
    return judgement.record.request.prompt_len + num if num else 0
