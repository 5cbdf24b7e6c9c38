"""How many cores this process may keep busy: its affinity mask and the CPU quotas of its control groups."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_UNIFIED = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
_CPU_CONTROLLER = ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct")


def usable_cores() -> int:
    """Cores this process may run on, at most its quota of CPU time, at least 1; not the machine's count."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, cpu_quota())))


def cpu_quota(root: Path = Path("/")) -> float:
    """CPU time per second of wall time that control groups (version 1 or 2) grant this process; infinite if unlimited.

    A group is bound by every group above it. Inside a container the process's own path may not be visible: the mount's
    top is then the container's group, and it is always read.
    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst (cpu.cfs_quota_us).
    """
    return min((quota for group in _groups(root) for quota in _quotas(group)), default=math.inf)


def _groups(root: Path) -> Iterator[Path]:
    """Folders of the process's CPU groups, own ones and those above, that may hold a quota."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux, or /proc is hidden
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        mounts = _CPU_CONTROLLER if "cpu" in controllers.split(",") else () if controllers else _UNIFIED
        own = Path(path.lstrip("/"))
        for mount in mounts:
            for step in (own, *own.parents):
                yield root / mount / step


def _quotas(group: Path) -> Iterator[float]:
    """The quota a group's folder states, in either version's form; none if it states none."""
    stated = _words(group / "cpu.max") or _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
    if len(stated) == 2 and stated[0] not in ("max", "-1"):
        quota, period = map(int, stated)
        yield quota / period


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
