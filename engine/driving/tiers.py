"""The tiers that an engine proposes: the built-in ones, as far as the machine can keep them.

Targets are never tighter than a moderately loaded engine can hold. Seconds.
"""

from __future__ import annotations

import math

from engine.deciding.latency import LatencyModel, LatencyProfile, add_chunk
from engine.deciding.plan import Work
from engine.deciding.request import Targets
from engine.messages import TierInfo

# What a moderate load looks like.
DECODES, CONTEXT, CHUNK = 32, 512, 64
PROMPT_LEN = 1024
PROMPTS_AHEAD = 4

TBT_S, TTFT_S, STANDARD_S, BATCH_S = 0.05, 1.0, 10.0, 60.0
ROUND = (1, 1.5, 2, 3, 5, 7.5, 10)


def propose(profile: LatencyProfile, max_batch_size: int, context_len: int) -> tuple[TierInfo, ...]:
    """Interactive, standard and batch for this profile."""
    model = LatencyModel(profile)
    decodes = min(DECODES, max_batch_size)
    work = Work(decodes, decodes * min(CONTEXT, context_len))
    tbt_s = _at_least(TBT_S, profile.seconds(add_chunk(work, 0, min(CHUNK, profile.max_chunk))))
    prompt_len = min(PROMPT_LEN, context_len)
    prefill_s = model.prefill_seconds(0, prompt_len, model.saturating_chunk())
    ttft_s = _at_least(TTFT_S, PROMPTS_AHEAD * prefill_s)
    scale = max(ttft_s / TTFT_S, tbt_s / TBT_S)
    return (
        TierInfo("interactive", Targets(ttft_s=ttft_s, tbt_s=tbt_s)),
        TierInfo("standard", Targets(ttlt_s=round(STANDARD_S * scale, 3))),
        TierInfo("batch", Targets(ttlt_s=round(BATCH_S * scale, 3))),
    )


def _at_least(target_s: float, needed_s: float) -> float:
    """The target where it can be kept, else the next round number that can."""
    if needed_s <= target_s:
        return target_s
    magnitude = 10.0 ** math.floor(math.log10(needed_s))
    return round(next(r for r in ROUND if r * magnitude >= needed_s) * magnitude, 9)
