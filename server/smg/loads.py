"""The load as SMG reads it: the answer to GetLoads, of which the gateway takes these numbers.

    num_waiting_reqs             from 8 on it is left out while another server has fewer
    token_usage                  from 0.8 on it is left out; below, the fuller the less it is sent
    num_waiting_uncached_tokens  what waits, and
    gen_throughput               how many tokens of that, and of what was sent since, go per second
    num_running_reqs             the more, the less it is sent

Waiting is what would come before a request (`server/loads.py`), memory is as streams find it, and
those that run are streams: with bulk among them the gateway sent all that people asked to the
other of two servers.
What the gateway divides is prompts, so the throughput told is that of prefills, with what streams
take of the engine's time. The tokens that come out per second say how many streams there are: by
them a server would be the slower the less it has to do.
"""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from smg_grpc_proto import vllm_engine_pb2 as vllm

from server.loads import Load


def to_loads(load: Load, most_requests: int, now: datetime | None = None) -> Any:
    """Returns the answer to GetLoads of a server where so many requests may wait or run."""
    memory = load.memory
    total = memory.total * memory.page_size
    return vllm.GetLoadsResponse(
        timestamp=(datetime.now(UTC) if now is None else now).isoformat(),
        version=version("niyama"),
        dp_rank_count=1,
        loads=[
            vllm.SchedulerLoad(
                num_running_reqs=memory.num_streams,
                num_waiting_reqs=load.waiting.num,
                num_total_reqs=load.num_sequences,
                num_used_tokens=(memory.held - memory.patient) * memory.page_size,
                max_total_num_tokens=total,
                token_usage=memory.usage,
                gen_throughput=load.speeds.prefill_tokens_per_s / load.speeds.slowdown,
                cache_hit_rate=load.cache_hits,
                utilization=load.batch_fill,
                max_running_requests=most_requests,
                num_waiting_uncached_tokens=load.waiting.tokens,
            )
        ],
    )
