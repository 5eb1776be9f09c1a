"""Puts a scheduler beside an executor, which every factory of engines ends with. Without torch."""

from __future__ import annotations

import os
import time
from importlib.metadata import version
from typing import Any

from engine.checkpoint.model_config import ModelConfig
from engine.checkpoint.options import Choices
from engine.config import EngineConfig
from engine.deciding.latency import LatencyModel, LatencyProfile
from engine.deciding.plan import Executor
from engine.deciding.policies import longest_gap
from engine.deciding.scheduler import Scheduler
from engine.deciding.scheduler_config import SchedulerConfig
from engine.decision_header import Service, described
from engine.driving.decision_file import DecisionFile
from engine.driving.loop import Engine
from engine.messages import Calibration, EngineInfo, Pinned
from engine.tiers import least_of, propose


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
    is_measured: bool = True,
) -> Engine:
    """Returns an engine whose scheduler plans for the executor's memory of `num_pages` pages.

    Predictions start from `profile`; where the engine takes the place of another, also from what
    that one had learnt. `choices` are those that the next engine is to keep; None: it chooses
    anew. `is_measured` says that the profile is this machine's, and no guess. Raises ValueError for
    a decision log that cannot be opened.
    """
    context_len = context_length(config, model)
    before = config.pinned
    tiers = propose(profile, config.max_batch_size, context_len)
    scheduling = _scheduler_config(config, num_pages, context_len)
    decisions = _decision_file(
        config,
        described(
            scheduling,
            profile,
            Service(tiers, tiers[0].name),  # until the service has told its own
            version=version("niyama"),
            model=config.served_name,
            started_unix_s=time.time(),
        ),
    )
    latency = LatencyModel(profile, learnt=() if before is None else before.learnt)
    scheduler = Scheduler(
        scheduling,
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
        tiers=tiers,
        least=least_of(profile, config.max_batch_size, context_len) if is_measured else None,
        calibration=calibration,
        compile_note=compile_note,
        max_gap=longest_gap(config.policy, config.niyama()),
    )
    looks_ahead = config.overlap == "on" or (config.overlap == "auto" and device.startswith("cuda"))
    pinned = None if choices is None else Pinned(choices, profile, calibration)
    return Engine(scheduler, executor, info, decisions, looks_ahead, pinned, lambda: latency.learnt)


def context_length(config: EngineConfig, model: ModelConfig) -> int:
    """Returns the most tokens that prompt and output may have together."""
    return min(config.context_len or model.max_positions, model.max_positions)


def _decision_file(config: EngineConfig, engine: dict[str, Any]) -> DecisionFile | None:
    """Returns the decision log that the operator asked for. Raises ValueError where it cannot be
    opened.
    """
    if config.decision_log is None:
        return None
    return DecisionFile(
        config.decision_log,
        time.time() - time.monotonic(),
        engine,
        config.decision_log_mib << 20,
        config.decision_log_files,
    )


def _scheduler_config(config: EngineConfig, num_pages: int, context_len: int) -> SchedulerConfig:
    return SchedulerConfig(
        num_pages=num_pages,
        context_len=context_len,
        page_size=config.page_size,
        policy=config.policy,
        chunk_size=config.chunk_size,
        max_batch_size=config.max_batch_size,
        record_capacity=config.record_capacity,
        niyama=config.niyama(),
    )
