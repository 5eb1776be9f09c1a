"""What the processes of the service use: CPU, memory, file descriptors, as Linux's /proc has it.

The names are those that Prometheus's own clients give (`process_cpu_seconds_total` and so on), with
a label `process` for who it is. A process that takes another's place goes on under its name, with
a counter that begins anew, which Prometheus understands.

Who there is, is found out at each scrape: the children of this process, and those of its front
ends. Each was started with its name as its last argument (`engine.processes.spawn`). Where there is
no /proc, there are no such metrics.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

SERVER = "server"  # the name of the process that serves the metrics
_PROC = Path("/proc")
_FRONT_END = "server.frontends.worker"
_MODULES = {"engine.driving", _FRONT_END, "server.reading.reader"}


class Usage(NamedTuple):
    """What a process uses. Times are in seconds, `started_at` since 1970, and memory in bytes."""

    cpu_s: float
    resident: float
    virtual: float
    started_at: float
    open_fds: float
    max_fds: float


_GAUGES = (
    ("resident_memory_bytes", "Resident memory size in bytes"),
    ("virtual_memory_bytes", "Virtual memory size in bytes"),
    ("start_time_seconds", "Start time of the process since unix epoch in seconds"),
    ("open_fds", "Number of open file descriptors"),
    ("max_fds", "Maximum number of open file descriptors"),
)


class ProcessMetrics(Collector):
    """Exposes what each process of the service uses."""

    def collect(self) -> Iterator[Metric]:
        """Yields what is asked for at a scrape."""
        usages = {name: usage for name, pid in processes().items() if (usage := read(pid))}
        text = "Total user and system CPU time spent in seconds"
        cpu = CounterMetricFamily("process_cpu_seconds", text, labels=["process"])
        for name, usage in usages.items():
            cpu.add_metric([name], usage.cpu_s)
        yield cpu
        for field, (what, text) in enumerate(_GAUGES, start=1):
            gauge = GaugeMetricFamily(f"process_{what}", text, labels=["process"])
            for name, usage in usages.items():
                gauge.add_metric([name], usage[field])
            yield gauge


def processes() -> dict[str, int]:
    """Returns the processes of the service by name: this one, and those that it has started."""
    return {SERVER: os.getpid(), **dict(_children(os.getpid(), ""))}


def _children(pid: int, prefix: str) -> Iterator[tuple[str, int]]:
    for child in _pids_of_children(pid):
        try:
            command = (_PROC / str(child) / "cmdline").read_bytes().decode().split("\0")[:-1]
        except (OSError, ValueError):  # it has ended
            continue
        if len(command) < 4 or command[1] != "-m" or command[2] not in _MODULES:
            continue
        name = prefix + command[-1]
        yield name, child
        if command[2] == _FRONT_END:
            yield from _children(child, f"{name}-")


def _pids_of_children(pid: int) -> list[int]:
    """Returns the children of all of its threads, by their numbers."""
    found: list[int] = []
    for path in _PROC.glob(f"{pid}/task/*/children"):
        try:
            found += map(int, path.read_text().split())
        except OSError:  # the thread has ended
            continue
    return sorted(found)


def read(pid: int) -> Usage | None:
    """Returns what the process uses; None where it has ended, or there is no /proc."""
    folder = _PROC / str(pid)
    try:
        # The name of the command, in brackets, may hold anything.
        fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        open_fds = len(os.listdir(folder / "fd"))
        limits = (folder / "limits").read_text()
        booted_at = _booted_at()
    except OSError:
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    user, system, start, virtual, resident = (float(fields[i]) for i in (11, 12, 19, 20, 21))
    return Usage(
        cpu_s=(user + system) / ticks,
        resident=resident * os.sysconf("SC_PAGE_SIZE"),
        virtual=virtual,
        started_at=booted_at + start / ticks,
        open_fds=open_fds,
        max_fds=_max_fds(limits),
    )


def _booted_at() -> float:
    lines = (_PROC / "stat").read_text().splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith("btime ")), 0.0)


def _max_fds(limits: str) -> float:
    soft = next((line.split()[3] for line in limits.splitlines() if "open files" in line), "0")
    return float("inf") if soft == "unlimited" else float(soft)
