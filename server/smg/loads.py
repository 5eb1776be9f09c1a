"""The load as SMG reads it: the answer to GetLoads, of which the gateway takes these numbers.

    num_waiting_reqs             from 8 on it is left out while another server has fewer
    token_usage                  from 0.8 on it is left out; below, the fuller the less it is sent
    num_waiting_uncached_tokens  what waits, and
    gen_throughput               how many tokens of that, and of what was sent since, go per second
    num_running_reqs             the more, the less it is sent

Waiting is what would come before a request (`server/loads.py`), memory is as streams find it, and
those that run are streams: with bulk among them the gateway sent all that people asked to the
other of two servers. At a port whose tier has no streams all that waits, runs and is held counts:
such work waits for it, and a gateway that saw none of it would send a night's to one server.
What the gateway divides is prompts, so the throughput told is that of prefills, with what streams
take of the engine's time. The tokens that come out per second say how many streams there are: by
them a server would be the slower the less it has to do.
"""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from smg_grpc_proto import vllm_engine_pb2 as vllm

from engine.deciding.queued_work import total
from engine.deciding.request import TargetKind
from engine.tiers import Tier
from server.loads import Load


def to_loads(
    load: Load, most_requests: int, port_tier: Tier | None = None, now: datetime | None = None
) -> Any:
    """Returns the answer to GetLoads of a server where so many requests may wait or run, at a port
    of that tier, if it has one.
    """
    memory = load.memory
    waiting, running = load.waiting, memory.num_streams
    held, usage = memory.held - memory.patient, memory.usage
    if port_tier is not None and port_tier.targets.kind is not TargetKind.INTERACTIVE:
        waiting, running = total((load.waiting, load.backlog)), load.running.num
        held, usage = memory.held, memory.held / memory.total
    return vllm.GetLoadsResponse(
        timestamp=(datetime.now(UTC) if now is None else now).isoformat(),
        version=version("niyama"),
        dp_rank_count=1,
        loads=[
            vllm.SchedulerLoad(
                num_running_reqs=running,
                num_waiting_reqs=waiting.num,
                num_total_reqs=load.num_sequences,
                num_used_tokens=held * memory.page_size,
                max_total_num_tokens=memory.total * memory.page_size,
                token_usage=usage,
                gen_throughput=load.speeds.prefill_tokens_per_s / load.speeds.slowdown,
                cache_hit_rate=load.cache_hits,
                utilization=load.batch_fill,
                max_running_requests=most_requests,
                num_waiting_uncached_tokens=waiting.tokens,
            )
        ],
    )
