"""The latency profile of the model on this machine: measured once, then remembered on disk.

A profile is kept under a key of everything that its costs depend on: the model, the machine, and
the text of the code that computes, measures and fits. The text, because a version number may stay
the same while that code changes, and because measuring again for nothing takes only seconds. A
folder that cannot be written to, or a file that is no profile, costs a measurement and no more.

A profile that does not predict what it was measured beside is not believed: it is measured once
more, and if that is no better, the better of the two is corrected as a whole, is not remembered,
and learns in service.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from engine import private
from engine.computing.calibration import Measurements
from engine.computing.fit import fit, median_error
from engine.deciding.latency import LatencyProfile, Segment
from engine.messages import Calibration

MOST_ERROR = 0.75  # median of |actual / predicted - 1| above which a profile is not believed
_ENGINE = Path(__file__).parents[1]
# What is measured and what measures, what a profile is made of, and how it is written.
_CODE = (
    "checkpoint/model_config.py",
    "checkpoint/options.py",
    "computing/**/*.py",
    "deciding/latency.py",
    "driving/profiles.py",
)


def code_fingerprint(engine: Path = _ENGINE) -> str:
    """Returns a digest of the code on which a profile depends."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _CODE for path in engine.glob(pattern)):
        digest.update(f"{path.relative_to(engine)}:{path.stat().st_size}:".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class Fitted(NamedTuple):
    """A profile and the measurements that it was made from.

    `error` is the median of |actual / predicted - 1| over the measurements that it was not made
    from, None where there are none.
    """

    profile: LatencyProfile
    measured: Measurements
    error: float | None

    @property
    def is_believed(self) -> bool:
        """Returns whether it predicts well enough the measurements that it was not made from."""
        return self.error is None or self.error <= MOST_ERROR

    def corrected(self) -> LatencyProfile:
        """Returns the profile with all its costs multiplied by one factor, the median of actual
        over predicted: on a busy machine it is most often the scale that was measured wrong.
        """
        profile = self.profile
        ratios = sorted(s.seconds / profile.seconds(s.work) for s in self.measured.held_out)
        factor = ratios[len(ratios) // 2]
        segments = [Segment(s.up_to, *(factor * x for x in s[1:])) for s in profile.segments]
        return replace(profile, segments=tuple(segments))


def obtain(
    folder: Path | None, key: dict[str, Any], measure: Callable[[], Measurements], again: bool
) -> tuple[LatencyProfile, Calibration]:
    """Returns the profile that the folder remembers under the key, or a new one, and how it came to
    be.

    A new one is made with `measure`, also where `again` asks for it; it is remembered if believed.
    `key` holds what JSON can, and `model_name` and `device`, which name the profile.
    """
    key = key | {"code": code_fingerprint()}
    text = json.dumps(key, sort_keys=True)
    name = f"profile-{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"
    path = None if folder is None else folder / name
    known = None if again or path is None else _read(path)
    if known is not None:
        profile, error = known
        return profile, Calibration(None, error, from_cache=True, profile=str(path))
    started_at = time.monotonic()
    name = f"{key['model_name']} on {key['device']}"
    fitted = _fit(name, measure())
    if not fitted.is_believed:
        fitted = min(fitted, _fit(name, measure()), key=lambda each: each.error or 0.0)
    profile, error = fitted.profile, fitted.error
    if fitted.is_believed:
        note = _write(path, {"profile": profile.to_dict(), "median_error": error, "key": key})
    else:
        profile = fitted.corrected()
        note = (
            f"not believed and not remembered: twice measured, off by {error:.0%} and more of what"
            " it predicts; corrected as a whole, it learns in service"
        )
    took_s, kept = time.monotonic() - started_at, str(path) if note is None else None
    return profile, Calibration(took_s, error, from_cache=False, profile=kept, note=note)


def _fit(name: str, measured: Measurements) -> Fitted:
    profile = fit(name, measured.samples, measured.max_chunk)
    error = median_error(profile, measured.held_out) if measured.held_out else None
    return Fitted(profile, measured, error)


def save(profile: LatencyProfile, path: Path) -> None:
    """Writes the profile as JSON, which `LatencyProfile.from_dict` reads again.

    Raises ValueError, naming the flag, where it cannot be written.
    """
    try:
        path.write_text(json.dumps(profile.to_dict(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--save-profile {path}: {error.strerror}") from error


def _read(path: Path) -> tuple[LatencyProfile, float | None] | None:
    """Returns the profile in a file, and its error. None where there is no file, where it is no
    profile or where it is not to be believed, such as one that another user may have put there.
    """
    try:
        data = json.loads(private.read(path))
        profile, error = LatencyProfile.from_dict(data["profile"]), data["median_error"]
        is_believed = error is None or 0 <= error <= MOST_ERROR
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    is_fitted = all(x >= 0 for segment in profile.segments for x in segment[1:])
    return (profile, error) if is_believed and is_fitted else None


def _write(path: Path | None, data: dict[str, Any]) -> str | None:
    """Remembers the data in the file. Returns why that could not be done, None where it was."""
    if path is None:
        return "not remembered: this user has no home folder, and XDG_CACHE_HOME is not set"
    try:
        private.write(path, json.dumps(data, indent=2))
    except OSError as error:
        return f"not remembered: {error}"
    return None
