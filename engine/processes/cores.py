"""How many CPU cores this process may use, by its affinity and by the quota that a container has.

A quota is a control group's `cpu.max` (https://docs.kernel.org/admin-guide/cgroup-v2.html): "200000
100000" allows 200 ms of every 100 ms, which is two cores; "max" is no limit. The quotas of the
groups around a process's own hold for it too.
"""

from __future__ import annotations

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cores(cgroups: Path = CGROUPS, own_cgroup: Path = OWN_CGROUP) -> int:
    """Returns how many whole cores there are, at least one."""
    cores = [len(os.sched_getaffinity(0)), *_quotas(cgroups, own_cgroup)]
    return max(1, int(min(cores)))


def _quotas(cgroups: Path, own_cgroup: Path) -> list[float]:
    """Returns the quotas, in cores, of this process's group and of those around it, as far as they
    can be seen from here.
    """
    try:
        lines = own_cgroup.read_text(encoding="utf-8").splitlines()
    except OSError:  # no control groups
        return []
    (name,) = [line.removeprefix("0::") for line in lines if line.startswith("0::")] or ["/"]
    group = cgroups / name.lstrip("/")
    groups = [folder for folder in (group, *group.parents) if folder.is_relative_to(cgroups)]
    quotas = [_quota(folder / "cpu.max") for folder in groups]
    return [quota for quota in quotas if quota is not None]


def _quota(file: Path) -> float | None:
    """Reads a quota in cores; None where there is no limit."""
    try:
        most, period = file.read_text(encoding="utf-8").split()
        return None if most == "max" else int(most) / int(period)
    except (OSError, ValueError):  # no such group, or no quota in it
        return None
