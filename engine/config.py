"""What the engine process is told when it is started, and the defaults of its flags.

Defaults of what the scheduler decides by stand where it takes them, in `engine.deciding`, and are
repeated nowhere.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from engine.checkpoint.options import COMPILE, DTYPES, QUANTIZE
from engine.deciding.niyama_config import NiyamaConfig
from engine.deciding.pace import PaceConfig
from engine.deciding.pages import PAGE_SIZE
from engine.deciding.policies import POLICIES
from engine.deciding.scheduler_config import SchedulerConfig
from engine.embedded import FOLDER
from engine.flags import Flag, flags_of
from engine.messages import Pinned

# The topics of flags, in the order of `--help`, which are also tables of the operator's file.
SECTIONS = {
    "listen": "where the server listens, and its connections",
    "limits": "what is refused beyond",
    "identity": "who is believed to be whom",
    "model": "what is served",
    "compute": "what computes it",
    "memory": "where keys and values are kept",
    "scheduler": "who is served when",
    "calibration": "what an iteration costs",
    "lifetime": "how it ends, and when a part of it is taken for lost",
    "logs": "what is told, and remembered",
    "metrics": "what is counted",
}

_SCHEDULER = SchedulerConfig(num_pages=1, context_len=1)  # for its defaults
_NIYAMA = _SCHEDULER.niyama
OVERLAP = ("auto", "on", "off")
# A folder of the hub's cache: models--ORG--NAME/snapshots/HASH, and perhaps one in it.
_SNAPSHOT = re.compile(r".*/models--([^/]+)/snapshots/[^/]+(/.+)?")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """All that an engine process is told; every field marked with `Flag` is a flag of the server.

    Raises ValueError, naming the field first, for a value out of range.
    """

    model: Annotated[
        Path,
        Flag(
            "checkpoint folder laid out as Hugging Face does, or GGUF file"
            " (default: the embedded model)",
            section="model",
        ),
    ] = FOLDER
    model_name: Annotated[
        str,
        Flag(
            "name to serve it by (default: that of the folder or file, or ORG/NAME of a hub"
            " snapshot)",
            section="model",
        ),
    ] = ""
    device: Annotated[
        str, Flag("auto, cpu, or a CUDA device such as cuda:0", section="compute")
    ] = "auto"
    dtype: Annotated[
        str, Flag("number format of the weights", ("auto", *DTYPES), section="model")
    ] = "auto"
    quantize: Annotated[str, Flag("keep the weights in fewer bits", QUANTIZE, section="model")] = (
        "none"
    )
    compile: Annotated[
        str, Flag("torch.compile: on, off, or auto, where it works", COMPILE, section="compute")
    ] = "auto"
    compile_cache: Annotated[
        Path | None,
        Flag(
            "folder of what was compiled"
            " (default: TORCHINDUCTOR_CACHE_DIR, else beside the profiles)",
            section="compute",
        ),
    ] = None
    overlap: Annotated[
        str,
        Flag(
            "plan and send while the device computes: on, off, or auto, on CUDA",
            OVERLAP,
            section="compute",
        ),
    ] = "auto"
    policy: Annotated[str, Flag("scheduling policy", POLICIES, section="scheduler")] = (
        _SCHEDULER.policy
    )
    chunk_size: Annotated[
        int, Flag("tokens per iteration of the fixed-chunk policies", section="scheduler")
    ] = _SCHEDULER.chunk_size
    max_batch_size: Annotated[int, Flag("most sequences in one iteration", section="scheduler")] = (
        _SCHEDULER.max_batch_size
    )
    page_size: Annotated[int, Flag("tokens per KV page", section="memory")] = PAGE_SIZE
    kv_memory_mib: Annotated[
        int, Flag("KV memory in MiB (0: chosen for the device)", section="memory")
    ] = 0
    context_len: Annotated[
        int, Flag("most tokens of prompt and output (0: the model's own)", section="model")
    ] = 0
    torch_threads: Annotated[
        int,
        Flag(
            "torch threads (0: all cores but one, the front end's; with --frontends N,"
            " give the number of cores less N)",
            section="compute",
        ),
    ] = 0
    max_gap: Annotated[
        float,
        Flag(
            "longest time between two tokens, in TBT targets; twice that of a stream that is late",
            section="scheduler",
        ),
    ] = _NIYAMA.pace.max_gap
    reserve: Annotated[
        float, Flag("slack kept for each stream, in TBT targets", section="scheduler")
    ] = _NIYAMA.pace.reserve
    relegation_allowance: Annotated[
        float,
        Flag("share of requests that may be relegated early to save others", section="scheduler"),
    ] = _NIYAMA.allowance
    background_share: Annotated[
        float,
        Flag("share of prefill tokens for best effort and relegated requests", section="scheduler"),
    ] = _NIYAMA.background_share
    longest_wait_s: Annotated[
        float,
        Flag(
            "seconds that best effort, and relegated requests after their deadline, wait to be"
            " begun before they end RESOURCE_EXHAUSTED (inf: they wait for ever)",
            section="scheduler",
        ),
    ] = _NIYAMA.longest_wait_s
    decision_log: Annotated[
        Path | None, Flag("JSONL file that gets every decision (default: none)", section="logs")
    ] = None
    decision_log_mib: Annotated[
        int,
        Flag("MiB after which the decision log is numbered and another begun", section="logs"),
    ] = 100
    decision_log_files: Annotated[
        int,
        Flag("most files of the decision log, the open one among them", section="logs"),
    ] = 10
    record_capacity: Annotated[int, Flag("requests that Explain remembers", section="logs")] = (
        _SCHEDULER.record_capacity
    )
    calibration_s: Annotated[
        float,
        Flag(
            "seconds of measuring at the first start (0: none, learn in service)",
            section="calibration",
        ),
    ] = 8.0
    calibration_cache: Annotated[
        Path | None,
        Flag(
            "folder of measured latency profiles (default: niyama in XDG_CACHE_HOME)",
            section="calibration",
        ),
    ] = None
    recalibrate: Annotated[
        bool, Flag("measure though a profile is remembered", section="calibration")
    ] = False
    save_profile: Annotated[
        Path | None,
        Flag(
            "JSON file for the profile, to simulate with; the server writes it and ends",
            section="calibration",
        ),
    ] = None
    patience_s: Annotated[
        float,
        Flag(
            "seconds that an iteration may take before the engine is started again",
            section="lifetime",
        ),
    ] = 60.0
    heartbeat_s: Annotated[
        float,
        Flag(
            "seconds without a beat after which a process is taken to have stopped: health says so,"
            " and after as long again it is started anew",
            section="lifetime",
        ),
    ] = 5.0
    rerun_s: Annotated[
        float,
        Flag(
            "seconds that calls of which nothing was sent wait for the next engine when theirs is"
            " lost (0: they end UNAVAILABLE)",
            section="lifetime",
        ),
    ] = 60.0
    # "module:function", imported by the engine process only; it returns a `loop.Engine`.
    factory: str = "engine.driving.build:build"
    pinned: Pinned | None = None  # of the engine whose place this one takes

    def __post_init__(self) -> None:
        sizes = ("chunk_size", "max_batch_size", "page_size")
        for name in (*sizes, "decision_log_mib", "decision_log_files"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("kv_memory_mib", "context_len", "torch_threads", "record_capacity"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name, flag in flags_of(EngineConfig).items():
            value = getattr(self, name)
            if flag.choices and value not in flag.choices:
                raise ValueError(f"{name} must be one of {', '.join(flag.choices)}, got {value!r}")
        if not self.model_name.isprintable():
            raise ValueError(f"model_name must be printable, got {self.model_name!r}")
        if not _DEVICE.fullmatch(self.device):
            raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {self.device!r}")
        if not 0 <= self.calibration_s < math.inf:
            raise ValueError(f"calibration_s must not be negative, got {self.calibration_s}")
        if not self.patience_s > 0:
            raise ValueError(f"patience_s must be positive, got {self.patience_s}")
        if not 0 < self.heartbeat_s < math.inf:
            raise ValueError(f"heartbeat_s must be positive, got {self.heartbeat_s}")
        if not 0 <= self.rerun_s < math.inf:
            raise ValueError(f"rerun_s must not be negative, got {self.rerun_s}")
        self.niyama()

    @property
    def served_name(self) -> str:
        """Returns the name that clients see: the one that was given, else that of the model's
        folder, or of its file.

        What of such a name is no text is replaced by question marks. What a GGUF file calls itself
        (`general.name`) does not count: it is often no name, and always somebody else's.
        """
        path = self.model.resolve()
        if path.is_file():  # a link may lead to a file of another name, as in the hub's cache
            path = self.model.parent.resolve() / self.model.name.removesuffix(".gguf")
        snapshot = _SNAPSHOT.fullmatch(path.as_posix())
        own = snapshot[1].replace("--", "/") + (snapshot[2] or "") if snapshot else path.name
        return self.model_name or own.encode("utf-8", "replace").decode()

    def niyama(self) -> NiyamaConfig:
        """Returns the part of it that the Niyama policy takes. Raises ValueError, naming the
        field.
        """
        if not 0 <= self.relegation_allowance < 1:  # NiyamaConfig names the field otherwise
            raise ValueError(
                f"relegation_allowance must be in [0, 1), got {self.relegation_allowance}"
            )
        return NiyamaConfig(
            pace=PaceConfig(max_gap=self.max_gap, reserve=self.reserve),
            allowance=self.relegation_allowance,
            background_share=self.background_share,
            longest_wait_s=self.longest_wait_s,
        )
