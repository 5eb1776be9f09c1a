"""Builds the engine for a checkpoint. No other module of `engine.driving` imports torch."""

from __future__ import annotations

import logging
import platform
from pathlib import Path

import torch

from engine.checkpoint.opening import open_source
from engine.computing import calibration, loading
from engine.computing.runner import ModelExecutor
from engine.config import EngineConfig
from engine.deciding.latency import UNBOUNDED, LatencyProfile, Segment
from engine.driving import profiles
from engine.driving.assemble import assemble, context_length
from engine.driving.loop import Engine
from engine.messages import Calibration
from engine.private import default_folder
from engine.processes.cores import usable_cores

log = logging.getLogger(__name__)  # what is being done, for people who wait

# What the scheduler predicts by at first where nothing was measured; it learns from each iteration.
UNCALIBRATED = LatencyProfile("uncalibrated", (Segment(UNBOUNDED, 2e-3, 2e-5, 1e-4, 1e-8, 1e-8),))


def build(config: EngineConfig) -> Engine:
    """Loads, compiles and measures the model, and returns its engine.

    Raises ValueError, with one line for the operator, for a folder that cannot be served, a device
    that is not there, or a file that cannot be written.
    """
    _check_outputs(config)
    chosen = None if config.pinned is None else config.pinned.choices
    device = _device(config.device if chosen is None else chosen.device)
    log.info("loading the model")
    executor = loading.load(
        config.model,
        device=device,
        dtype=config.dtype,
        quantize=config.quantize,
        compile=config.compile,
        compile_cache=config.compile_cache,
        kv_bytes=config.kv_memory_mib << 20,
        page_size=config.page_size,
        threads=config.torch_threads or _threads(),
        chosen=chosen,
    )
    log.info("compiling the model" if executor.is_compiled else "running the model once")
    executor.warm_up()
    if executor.is_compiled and executor.device.type == "cuda":
        gather_bytes = None if chosen is None else chosen.gather_bytes
        context_len = context_length(config, executor.config)
        executor.capture_decodes(config.max_batch_size, context_len, gather_bytes=gather_bytes)
    profile, calibration = _profile(config, executor)
    if config.save_profile is not None and config.pinned is None:
        profiles.save(profile, config.save_profile)
    return assemble(
        config,
        executor.config,
        executor,
        profile,
        executor.num_pages,
        dtype=str(executor.dtype).removeprefix("torch."),
        device=str(executor.device),
        calibration=calibration,
        compile_note=executor.compile_note,
        choices=executor.choices,
        is_measured=profile != UNCALIBRATED,
    )


def _check_outputs(config: EngineConfig) -> None:
    """Checks that the files which are opened only when all is measured have folders to stand in.

    Raises ValueError, naming the flag, where one has not.
    """
    for flag, path in (
        ("decision-log", config.decision_log),
        ("save-profile", config.save_profile),
    ):
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"--{flag} {path}: there is no folder {path.parent}")


def _profile(
    config: EngineConfig, executor: ModelExecutor
) -> tuple[LatencyProfile, Calibration | None]:
    """Returns the latency profile to begin with, and how it came to be; None where nothing was
    measured.
    """
    if config.pinned is not None:
        return config.pinned.profile, config.pinned.calibration
    if not config.calibration_s:
        return UNCALIBRATED, None
    context_len = context_length(config, executor.config)

    def measure() -> calibration.Measurements:
        log.info("measuring the model")
        return calibration.measure(
            executor, context_len, config.max_batch_size, config.calibration_s
        )

    key = {
        "model": open_source(config.model).shape_digest(),
        "model_name": config.served_name,
        "device": _device_name(executor.device),
        "dtype": str(executor.dtype),
        "quantize": config.quantize,
        "compiled": executor.is_compiled,
        "slow_rows": list(executor.slow_rows),
        "threads": torch.get_num_threads(),
        "page_size": config.page_size,
        "num_pages": executor.num_pages,
        "max_batch_size": config.max_batch_size,
        "context_len": context_len,
        "torch": torch.__version__,
    }
    folder = config.calibration_cache or default_folder()
    return profiles.obtain(folder, key, measure, config.recalibrate)


def _device_name(device: torch.device) -> str:
    """Returns the name of the hardware, which a profile holds for: "cuda:0" is another device on
    another machine.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {usable_cores()} cores"


def _device(name: str) -> str:
    """Returns the device that torch is to use, for what the flag says.

    Raises ValueError, with one line for the operator, for one that this machine or this torch does
    not have.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.backends.cuda.is_built():
        raise ValueError(f"--device {name}: this torch has no CUDA")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"--device {name}: no such device, CUDA finds {count}")
    return name


def _threads() -> int:
    """Returns the number of torch's threads that leaves one core to the front end.

    Torch's threads wait for each other in every layer, and one that shares its core delays all.
    Measured on 2 cores shared with front end and load generator (`python -m tests.bench
    prediction`, 8 requests/s): an iteration takes 4.2 ms with one thread and 6.1 ms with two, the
    p90 of TTFT is 453 and 590 ms.
    """
    return max(1, usable_cores() - 1)
