"""What the engine process is told when it is started, and the one place of its flags' defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from engine.embedded import FOLDER

POLICIES = ("niyama", "fcfs", "edf", "srpf")
DTYPES = ("auto", "float32", "bfloat16", "float16")


class Flag(NamedTuple):
    """Marks a field that is a command-line flag of the server. `help` carries its unit."""

    help: str
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Raises ValueError, naming the field first, for a value out of range."""

    model: Annotated[Path, Flag("checkpoint folder laid out as Hugging Face does")] = FOLDER
    model_name: Annotated[str, Flag("name to serve it by (default: the folder's)")] = ""
    device: Annotated[str, Flag("auto, cpu, or a CUDA device such as cuda:0")] = "auto"
    dtype: Annotated[str, Flag("number format of the weights", DTYPES)] = "auto"
    policy: Annotated[str, Flag("scheduling policy", POLICIES)] = "niyama"
    chunk_size: Annotated[int, Flag("tokens per iteration of the fixed-chunk policies")] = 256
    max_batch_size: Annotated[int, Flag("most sequences in one iteration")] = 64
    page_size: Annotated[int, Flag("tokens per KV page")] = 16
    kv_memory_mib: Annotated[int, Flag("KV memory in MiB (0: chosen for the device)")] = 0
    context_len: Annotated[int, Flag("most tokens of prompt and output (0: the model's own)")] = 0
    torch_threads: Annotated[int, Flag("torch threads (0: all cores but one, the front end's)")] = 0
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
