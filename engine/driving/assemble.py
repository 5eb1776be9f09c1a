"""Puts a scheduler beside an executor: what every factory of engines ends with. No torch here."""

from __future__ import annotations

import os
import time

from engine.checkpoint.model_config import ModelConfig
from engine.checkpoint.options import Choices
from engine.config import EngineConfig
from engine.deciding.latency import LatencyModel, LatencyProfile
from engine.deciding.plan import Executor
from engine.deciding.scheduler import Scheduler
from engine.deciding.scheduler_config import SchedulerConfig
from engine.driving.decision_file import DecisionFile
from engine.driving.loop import Engine
from engine.messages import Calibration, EngineInfo, Pinned
from engine.tiers import propose


def assemble(
    config: EngineConfig,
    model: ModelConfig,
    executor: Executor,
    profile: LatencyProfile,
    num_pages: int,
    *,
    dtype: str,
    device: str,
    calibration: Calibration | None = None,
    compile_note: str = "",
    choices: Choices | None = None,
) -> Engine:
    """`num_pages` is what the executor's memory holds; `profile` is where its costs start, and
    where an engine came before this one, what it had learnt. Raises ValueError for a decision log
    that cannot be opened.
    """
    context_len = context_length(config, model)
    decisions = (
        None
        if config.decision_log is None
        else DecisionFile(config.decision_log, time.time() - time.monotonic())
    )
    before = config.pinned
    latency = LatencyModel(profile, learnt=() if before is None else before.learnt)
    scheduler = Scheduler(
        SchedulerConfig(
            num_pages=num_pages,
            context_len=context_len,
            page_size=config.page_size,
            policy=config.policy,
            chunk_size=config.chunk_size,
            max_batch_size=config.max_batch_size,
            record_capacity=config.record_capacity,
            niyama=config.niyama(),
        ),
        latency,
        None if decisions is None else decisions.write,
    )
    info = EngineInfo(
        model_name=config.served_name,
        architecture=model.architecture,
        context_len=context_len,
        vocab_size=model.vocab_size,
        num_parameters=model.num_parameters,
        dtype=dtype,
        device=device,
        policy=config.policy,
        num_pages=num_pages,
        page_size=config.page_size,
        max_batch_size=config.max_batch_size,
        pid=os.getpid(),
        eos_token_ids=frozenset(model.eos_ids),
        context_note=model.context_note,
        tiers=propose(profile, config.max_batch_size, context_len),
        calibration=calibration,
        compile_note=compile_note,
    )
    looks_ahead = config.overlap == "on" or (config.overlap == "auto" and device.startswith("cuda"))
    pinned = None if choices is None else Pinned(choices, profile, calibration)
    return Engine(scheduler, executor, info, decisions, looks_ahead, pinned, lambda: latency.learnt)


def context_length(config: EngineConfig, model: ModelConfig) -> int:
    """Most tokens of prompt and output together."""
    return min(config.context_len or model.max_positions, model.max_positions)
