"""Puts a scheduler beside an executor: what every factory of engines ends with. No torch here."""

from __future__ import annotations

import os

from engine.computing.config import ModelConfig
from engine.deciding.config import SchedulerConfig
from engine.deciding.latency import LatencyModel, LatencyProfile
from engine.deciding.plan import Executor
from engine.deciding.scheduler import Scheduler
from engine.driving.config import EngineConfig
from engine.driving.loop import Engine
from engine.driving.messages import EngineInfo


def assemble(
    config: EngineConfig,
    model: ModelConfig,
    executor: Executor,
    profile: LatencyProfile,
    num_pages: int,
    *,
    dtype: str,
    device: str,
) -> Engine:
    """`num_pages` is what the executor's memory holds; `profile` is where its costs start."""
    context_len = min(config.context_len or model.max_positions, model.max_positions)
    scheduler = Scheduler(
        SchedulerConfig(
            num_pages=num_pages,
            context_len=context_len,
            page_size=config.page_size,
            policy=config.policy,
            chunk_size=config.chunk_size,
            max_batch_size=config.max_batch_size,
        ),
        LatencyModel(profile),
    )
    info = EngineInfo(
        model_name=config.model_name or config.model.resolve().name,
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
    )
    return Engine(scheduler, executor, info)
