"""What the engine process is told when it is started, and the one place of its flags' defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.embedded import FOLDER

POLICIES = ("niyama", "fcfs", "edf", "srpf")


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A field that is also a command-line flag; `help` carries its unit."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Raises ValueError, naming the field first, for a value out of range."""

    model: Path = option(FOLDER, "checkpoint folder laid out as Hugging Face does")
    model_name: str = option("", "name to serve it by (default: the folder's name)")
    device: str = option("auto", "auto, cpu, or a CUDA device such as cuda:0")
    dtype: str = option("auto", "auto, float32, bfloat16 or float16")
    policy: str = option("niyama", "scheduling policy", choices=POLICIES)
    chunk_size: int = option(256, "tokens per iteration, decodes included, for fixed chunks")
    max_batch_size: int = option(64, "most sequences in one iteration")
    page_size: int = option(16, "tokens per KV page")
    kv_memory_mib: int = option(0, "KV memory in MiB (0: chosen for the device)")
    context_len: int = option(0, "most tokens of prompt and output together (0: the model's own)")
    torch_threads: int = option(0, "threads of the engine process (0: torch's own choice)")
    # "module:function", imported by the engine process only; it returns a `loop.Engine`.
    factory: str = "engine.driving.build:build"

    def __post_init__(self) -> None:
        for name in ("chunk_size", "max_batch_size", "page_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("kv_memory_mib", "context_len", "torch_threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {self.policy!r}")
