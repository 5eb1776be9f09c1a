"""Sends the applications' calls to a server of its own, as each of them would."""

from __future__ import annotations

import asyncio
import contextlib
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from loadgen.inferring.applications import Application, Call, Caller, tiers_toml
from loadgen.targets import local_server, priority
from niyama.client import AsyncClient, NiyamaError
from niyama.client.options import GenerateOptions
from niyama.client.values import ResolvedTargets

DRAIN_S = 60.0  # for the last answers
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


def run(
    callers: Sequence[Caller],
    is_on: bool,
    module: str = local_server.MODULE,
    server_flags: Sequence[str] = (),
) -> None:
    """Sends all calls and notes in each what became of it."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "niyama.toml"
        config.write_text(tiers_toml(), encoding="utf-8")
        mode = "on" if is_on else "shadow"
        flags = ["--config", str(config), "--infer", mode, *server_flags]
        with local_server.serving(flags, module) as address, priority.raised():
            asyncio.run(_run(callers, address))


async def _run(callers: Sequence[Caller], address: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        senders = []
        for caller in callers:
            client = AsyncClient(address, channel_options=_OWN_CONNECTION)
            await stack.enter_async_context(client)
            senders.append(_Sender(caller, client))
        began = time.monotonic()
        async with asyncio.timeout(None), asyncio.TaskGroup() as group:
            for sender in senders:
                group.create_task(sender.run(began, group))


class _Sender:
    """One application."""

    def __init__(self, caller: Caller, client: AsyncClient) -> None:
        self._caller = caller
        self._client = client
        self._began = 0.0

    async def run(self, began: float, group: asyncio.TaskGroup) -> None:
        """Sends its calls, and those that follow on answers."""
        self._began, self._group = began, group
        self._send(self._caller.first())

    def _send(self, calls: Iterator[Call]) -> None:
        for call in calls:
            self._group.create_task(self._follow(call))

    def _now(self) -> float:
        return time.monotonic() - self._began

    async def _follow(self, call: Call) -> None:
        await asyncio.sleep(call.at - self._now())
        send = self._stream if call.application.is_stream else self._unary
        with contextlib.suppress(NiyamaError, TimeoutError):
            await send(call)
        call.ended_at = self._now()
        self._send(self._caller.answered(call))

    async def _stream(self, call: Call) -> None:
        own = call.application
        gives_up_at = call.at + min(call.leaves_s, call.gives_up_s)
        async with asyncio.timeout(_after(gives_up_at - self._now())) as patience:
            stream = self._client.generate(_prompt(call), **_options(own))
            async with stream:
                async for tokens in stream:
                    if not call.token_at and stream.accepted is not None:
                        _note_targets(call, stream.accepted.targets)
                        patience.reschedule(_loop_time(call.leaves_s - (self._now() - call.at)))
                    call.token_at += [self._now()] * len(tokens.token_ids)
                    if call.leaves_after is not None and len(call.token_at) >= call.leaves_after:
                        return
        call.is_complete = True

    async def _unary(self, call: Call) -> None:
        own = call.application
        leaves_s = min(call.leaves_s, call.gives_up_s)
        async with asyncio.timeout(_after(leaves_s - (self._now() - call.at))):
            result = await self._client.complete(_prompt(call), **_options(own))
        _note_targets(call, result.targets)
        call.is_complete = True


def _note_targets(call: Call, targets: ResolvedTargets) -> None:
    """Notes what the call was served with. A tier that was inferred and not used is not told."""
    call.tier = targets.tier
    call.inferred = targets.tier if targets.source == "inferred" else ""


def _options(application: Application) -> GenerateOptions:
    """Returns what its calls say: nothing of what they need."""
    options: GenerateOptions = {"max_tokens": application.output_len, "ignore_eos": True}
    if application.is_named:
        options["application"] = application.name
    if application.timeout_s is not None:
        options["timeout"] = application.timeout_s
    return options


def _prompt(call: Call) -> list[int]:
    return [3 + (call.number * 7 + i) % 200 for i in range(call.prompt_len)]


def _after(seconds: float) -> float | None:
    return None if seconds == math.inf else max(0.0, seconds)


def _loop_time(seconds: float) -> float | None:
    after = _after(seconds)
    return None if after is None else asyncio.get_running_loop().time() + after
