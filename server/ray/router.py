"""Sends each call to the replica where its deadline is most surely met, or as a rival would: Ray's
request router, which decides as `engine.routing` does, by what the replicas said last and what was
sent to them since.
"""

from __future__ import annotations

import os
import pickle
import time
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from engine.routing.router import Router
from engine.routing.states import Asked
from niyama.v1 import inference_pb2 as pb
from server.ray.asked import QUESTION, Reader
from server.ray.loads import told_of
from server.ray.messages import Call
from server.ray.telling import AT, INFO, LOAD

MOST_PENDING = 4096  # calls that are remembered while they are routed; of some Ray never tells more


class FleetRouter(RequestRouter):  # type: ignore[misc]  # it has no types
    """The router of one deployment in one of Ray's proxies; there may be several, and each knows
    only what it has sent itself.
    """

    def initialize_state(
        self, routing: str, path: str | None, text: str | None, has_gateway: bool
    ) -> None:
        """Takes the name of the routing, the operator's file, and whether a gateway's metadata
        count. Ray calls it first.
        """
        self._router = Router(routing, seed=os.getpid())
        self._reader = Reader(path, text, has_gateway)
        self._told_at: dict[str, float] = {}
        self._asked: dict[str, Asked] = {}  # of calls that are being routed, by Ray's id of each

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Returns the replicas, the best first, each alone in its rank. Those that have failed to
        serve the call come last.
        """
        by_name = {each.replica_id.unique_id: each for each in candidate_replicas}
        for name, replica in by_name.items():
            self._hear(name, replica.routing_stats)
        call = None if pending_request is None else _call(pending_request)
        asked = QUESTION if call is None else self._reader.read(call)
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
            self._asked[pending_request.metadata.internal_request_id] = asked
            if len(self._asked) > MOST_PENDING:
                del self._asked[next(iter(self._asked))]
        order = self._router.ranked(asked, list(by_name), time.time())
        if call is not None:
            order.sort(key=call.tried.__contains__)
        return [[by_name[name]] for name in order]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """Ray has sent a call to a replica, which has taken it."""
        asked = self._asked.pop(pending_request.metadata.internal_request_id, None)
        if asked is not None:  # else it has ended already
            call = pending_request.metadata.internal_request_id
            self._router.sent(replica_id.unique_id, asked, time.time(), call)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """A call has ended, or was not taken."""
        if self._asked.pop(internal_request_id, None) is None:
            self._router.ended(replica_id.unique_id, internal_request_id)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """A replica is gone."""
        super().on_replica_actor_died(replica_id)
        self._forget(replica_id.unique_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Ray tells which replicas there are, and what they say."""
        super().update_replicas(replicas)
        names = {each.replica_id.unique_id for each in replicas}
        for name in [each for each in self._told_at if each not in names]:
            self._forget(name)

    def _hear(self, name: str, stats: dict[str, Any]) -> None:
        at = stats.get(AT, 0.0)
        if at > self._told_at.get(name, 0.0):
            self._told_at[name] = at
            self._router.told(name, told_of(pb.GetLoadResponse.FromString(stats[LOAD]), at))
            self._reader.learn(pb.GetServerInfoResponse.FromString(stats[INFO]))

    def _forget(self, name: str) -> None:
        self._told_at.pop(name, None)
        self._router.lost(name)


def _call(pending: PendingRequest) -> Call | None:
    """Returns the call as our handler at the proxy made it."""
    found = pickle.loads(pending.args[0]).user_request_proto
    return found if isinstance(found, Call) else None
