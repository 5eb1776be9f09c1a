"""What a replica's server says of its load, asked for once a second: the router and whoever counts
replicas look at the newest answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any, Final

import grpc

from niyama.v1 import inference_pb2 as pb
from niyama.v1 import inference_pb2_grpc
from server.identity.tokens import KEY
from server.loads import FRESH_S
from server.ray import loads

PERIOD_S: Final = 1.05 * FRESH_S  # so that every answer is a new one
TIMEOUT_S = 5.0
# What a router finds in Ray's routing stats of a replica: when it was told, on the clock of its
# machine, a GetLoadResponse, and a GetServerInfoResponse.
AT, LOAD, INFO = "at", "load", "info"


class Telling:
    """The newest load of the server behind a channel, which is to `run`. `token` is a file with the
    operator's, where callers are asked who they are.
    """

    def __init__(self, channel: grpc.aio.Channel, token: Path | None) -> None:
        self._stub = inference_pb2_grpc.InferenceStub(channel)
        self._token = token
        self._load: pb.GetLoadResponse | None = None
        self._told: dict[str, Any] = {}
        self._info = b""

    async def run(self) -> None:
        """Asks again and again, until it is cancelled; with no answer it keeps what it has."""
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError, OSError):
                await self._ask()
            await asyncio.sleep(PERIOD_S)

    def for_routing(self) -> dict[str, Any]:
        """Returns what a router is to know."""
        return self._told

    def for_scaling(self) -> dict[str, float]:
        """Returns the numbers by which it is decided how many replicas there are."""
        return {} if self._load is None else loads.for_scaling(self._load)

    async def _ask(self) -> None:
        shown = []
        if self._token is not None:
            token = await asyncio.to_thread(self._token.read_text)
            shown.append((KEY, f"Bearer {token.strip()}"))
        at = time.time()
        options = {"metadata": shown, "timeout": TIMEOUT_S}
        load = await self._stub.GetLoad(pb.GetLoadRequest(), **options)
        if not self._info:
            info = await self._stub.GetServerInfo(pb.GetServerInfoRequest(), **options)
            self._info = info.SerializeToString()
        self._load = load
        self._told = {AT: at, LOAD: load.SerializeToString(), INFO: self._info}
