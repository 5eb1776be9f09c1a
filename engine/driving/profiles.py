"""The latency profile of the model on this machine: measured once, then remembered on disk.

A profile is kept under a key of everything that its costs depend on: the model, the machine, and
the code that computes, measures and fits. A version number would be the same for two states of that
code, its text is not; to measure again after a change that costs nothing takes some seconds. A
folder that cannot be written to, or a file that is no profile, costs a measurement and no more.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.computing.calibration import Measurements
from engine.deciding.fit import fit, median_error
from engine.deciding.latency import LatencyProfile
from engine.driving.messages import Calibration

_ENGINE = Path(__file__).parents[1]
# What is measured and what measures, what a profile is made of, and how it is written.
_CODE = ("computing/*.py", "deciding/fit.py", "deciding/latency.py", "driving/profiles.py")


def default_folder() -> Path:
    """By the XDG Base Directory Specification."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "niyama"


def model_fingerprint(folder: Path) -> str:
    """Of the shape of a checkpoint: costs depend on no weight's value."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name}:{path.stat().st_size}".encode())
    return digest.hexdigest()[:16]


def code_fingerprint(engine: Path = _ENGINE) -> str:
    """Of the code on which a profile depends."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _CODE for path in engine.glob(pattern)):
        digest.update(f"{path.relative_to(engine)}:{path.stat().st_size}:".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def obtain(
    folder: Path, key: dict[str, Any], measure: Callable[[], Measurements], again: bool
) -> tuple[LatencyProfile, Calibration]:
    """The profile remembered under the key, or a new one, which is then remembered."""
    key = key | {"code": code_fingerprint()}
    text = json.dumps(key, sort_keys=True)
    path = folder / f"profile-{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"
    known = None if again else _read(path)
    if known is not None:
        profile, error = known
        return profile, Calibration(None, error, from_cache=True, profile=str(path))
    started_at = time.monotonic()
    measured = measure()
    profile = fit(f"{key['model_name']} on {key['device']}", measured.samples, measured.max_chunk)
    error = median_error(profile, measured.held_out) if measured.held_out else None
    note = _write(path, {"profile": profile.to_dict(), "median_error": error, "key": key})
    took_s, kept = time.monotonic() - started_at, str(path) if note is None else None
    return profile, Calibration(took_s, error, from_cache=False, profile=kept, note=note)


def save(profile: LatencyProfile, path: Path) -> None:
    """As `LatencyProfile.from_dict` reads it. Raises ValueError where it cannot be written."""
    try:
        path.write_text(json.dumps(profile.to_dict(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--save-profile {path}: {error.strerror}") from error


def _read(path: Path) -> tuple[LatencyProfile, float | None] | None:
    """None where there is none, or none that can be read."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return LatencyProfile.from_dict(data["profile"]), data["median_error"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, data: dict[str, Any]) -> str | None:
    """In one piece, so that no reader sees half of it. Returns why it could not be, else None."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(data, file, indent=2)
        os.replace(file.name, path)
    except OSError as error:
        return f"not remembered: {error}"
    return None
