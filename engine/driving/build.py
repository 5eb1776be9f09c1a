"""Builds the engine for a checkpoint folder: the only module here that imports torch."""

from __future__ import annotations

import os

import torch

from engine.computing import runner
from engine.computing.checkpoint import read_config
from engine.computing.config import ModelConfig
from engine.deciding.latency import UNBOUNDED, LatencyModel, LatencyProfile, Segment
from engine.deciding.scheduler import Scheduler, SchedulerConfig
from engine.driving.config import EngineConfig
from engine.driving.loop import Engine
from engine.driving.messages import EngineInfo

# Where the scheduler starts before it has seen an iteration; it learns from every one.
UNCALIBRATED = LatencyProfile("uncalibrated", (Segment(UNBOUNDED, 2e-3, 2e-5, 1e-4, 1e-8, 1e-8),))
CPU_KV_BYTES = 256 << 20
# Of the GPU's free memory: the rest is for activations and the allocator's slack.
GPU_SHARE = 0.85


def build(config: EngineConfig) -> Engine:
    """Raises CheckpointError, one line, for a folder that cannot be served."""
    device = _device(config.device)
    executor = runner.load(
        config.model,
        device=device,
        dtype=config.dtype,
        kv_bytes=(config.kv_memory_mib << 20) or _kv_bytes(config, device),
        page_size=config.page_size,
        threads=config.torch_threads or None,
    )
    executor.warm_up()
    model = executor.config
    scheduler = Scheduler(
        SchedulerConfig(
            num_pages=executor.num_pages,
            context_len=_context_len(config, model),
            page_size=executor.page_size,
            policy=config.policy,
            chunk_size=config.chunk_size,
            max_batch_size=config.max_batch_size,
        ),
        LatencyModel(UNCALIBRATED),
    )
    return Engine(scheduler, executor, _info(config, executor, scheduler))


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _kv_bytes(config: EngineConfig, device: str) -> int:
    """What a GPU's free memory leaves beside the weights; on a CPU a modest constant."""
    if not device.startswith("cuda"):
        return CPU_KV_BYTES
    free, _ = torch.cuda.mem_get_info(torch.device(device))
    weights = read_config(config.model).num_parameters * (4 if config.dtype == "float32" else 2)
    return max(int(free * GPU_SHARE) - weights, CPU_KV_BYTES)


def _context_len(config: EngineConfig, model: ModelConfig) -> int:
    return min(config.context_len or model.max_positions, model.max_positions)


def _info(config: EngineConfig, executor: runner.ModelExecutor, scheduler: Scheduler) -> EngineInfo:
    model = executor.config
    return EngineInfo(
        model_name=config.model_name or config.model.resolve().name,
        architecture=model.architecture,
        context_len=scheduler.config.context_len,
        vocab_size=model.vocab_size,
        num_parameters=model.num_parameters,
        dtype=str(executor.dtype).removeprefix("torch."),
        device=str(executor.device),
        policy=config.policy,
        num_pages=executor.num_pages,
        page_size=executor.page_size,
        max_batch_size=config.max_batch_size,
        pid=os.getpid(),
        eos_token_ids=frozenset(model.eos_ids),
    )
