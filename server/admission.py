"""Who may still wait when many do: at most `max_requests` requests, shared between tenants.

While the queue is at most half full, and for a lone tenant always, there is only the limit. Beyond
that a tenant may hold `max_requests` divided by the number of active tenants. Active is who has
requests in flight, who calls, and who was refused a moment ago: a tenant that finds the queue full
of another's requests thereby makes room for its next try.
"""

from __future__ import annotations

from collections.abc import Mapping

from server import errors

# Refused callers are told to try again after RETRY_AFTER_S: their share waits a little longer.
REMEMBERED_S = 2.0 * errors.RETRY_AFTER_S


class Admission:
    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._refused_at: dict[str, float] = {}  # tenant to the instant, oldest first

    def check(self, tenant: str, n: int, in_flight: Mapping[str, int], now: float) -> None:
        """Whether `tenant` may submit `n` more requests beside those `in_flight`, by tenant.

        Raises CallError, RESOURCE_EXHAUSTED.
        """
        self._forget(now)
        total = sum(in_flight.values()) + n
        if total > self._max_requests:
            self._refuse(tenant, now)
            raise errors.queue_full(self._max_requests)
        active = {tenant, *(each for each, count in in_flight.items() if count), *self._refused_at}
        share = self._max_requests // len(active)
        if 2 * total > self._max_requests and in_flight.get(tenant, 0) + n > max(share, 1):
            raise errors.share_used(share, len(active))
        self._refused_at.pop(tenant, None)

    def _refuse(self, tenant: str, now: float) -> None:
        self._refused_at.pop(tenant, None)
        self._refused_at[tenant] = now

    def _forget(self, now: float) -> None:
        for tenant, at in list(self._refused_at.items()):
            if now - at <= REMEMBERED_S:
                return
            del self._refused_at[tenant]
