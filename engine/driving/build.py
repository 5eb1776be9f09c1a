"""Builds the engine for a checkpoint folder: the only module here that imports torch."""

from __future__ import annotations

import os

import torch

from engine.computing import runner
from engine.computing.checkpoint import read_config
from engine.deciding.latency import UNBOUNDED, LatencyProfile, Segment
from engine.driving.assemble import assemble
from engine.driving.config import EngineConfig
from engine.driving.loop import Engine

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
        threads=config.torch_threads or _threads(),
    )
    executor.warm_up()
    return assemble(
        config,
        executor.config,
        executor,
        UNCALIBRATED,
        executor.num_pages,
        dtype=str(executor.dtype).removeprefix("torch."),
        device=str(executor.device),
    )


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _threads() -> int:
    """One core is left to the front end: torch's threads wait for each other in every layer, and
    one that shares its core delays all (with 2 threads on 2 busy cores, tokens took 10x as long).
    """
    return max(1, len(os.sched_getaffinity(0)) - 1)


def _kv_bytes(config: EngineConfig, device: str) -> int:
    """What a GPU's free memory leaves beside the weights; on a CPU a modest constant."""
    if not device.startswith("cuda"):
        return CPU_KV_BYTES
    free, _ = torch.cuda.mem_get_info(torch.device(device))
    weights = read_config(config.model).num_parameters * (4 if config.dtype == "float32" else 2)
    return max(int(free * GPU_SHARE) - weights, CPU_KV_BYTES)
