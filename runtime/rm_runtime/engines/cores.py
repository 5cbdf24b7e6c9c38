"""How many cores this process may keep busy: its affinity mask and the CPU quotas of its control groups."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from rm_runtime.engines.control_groups import group_folders, words_of


def usable_cores() -> int:
    """Cores this process may run on, at most its quota of CPU time, at least 1; not the machine's count."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, cpu_quota())))


def cpu_quota(root: Path = Path("/")) -> float:
    """CPU time per second of wall time that control groups (version 1 or 2) grant this process; infinite if unlimited.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst (cpu.cfs_quota_us).
    """
    return min((quota for group in group_folders("cpu", root) for quota in _quotas(group)), default=math.inf)


def _quotas(group: Path) -> Iterator[float]:
    """The quota a group's folder states, in either version's form; none if it states none."""
    stated = words_of(group / "cpu.max") or words_of(group / "cpu.cfs_quota_us") + words_of(group / "cpu.cfs_period_us")
    if len(stated) == 2 and stated[0] not in ("max", "-1"):
        quota, period = map(int, stated)
        yield quota / period
