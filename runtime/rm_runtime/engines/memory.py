"""How much memory this process may still take: what the machine has available and its control groups leave."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from rm_runtime.engines.control_groups import group_folders, words_of


def available_bytes(root: Path = Path("/")) -> float:
    """Bytes that can be taken without swapping or being killed; infinite where the system does not tell.

    Cached files count as available, as the kernel drops them first.
    Source: Linux, Documentation/filesystems/proc.rst (MemAvailable), admin-guide/cgroup-v2.rst (memory.max,
    memory.current, memory.stat) and cgroup-v1/memory.rst.
    """
    machine = _named(root / "proc/meminfo").get("MemAvailable:")
    groups = (left for group in group_folders("memory", root) for left in _left(group))
    return min([*groups, math.inf if machine is None else 1024.0 * machine])


def _left(group: Path) -> Iterator[float]:
    """What a group's folder leaves, in either version's form; none if it states no limit."""
    stated = words_of(group / "memory.max") or words_of(group / "memory.limit_in_bytes")
    used = words_of(group / "memory.current") or words_of(group / "memory.usage_in_bytes")
    if stated and used and stated[0] != "max":
        cached = _named(group / "memory.stat")
        yield float(
            max(0, int(stated[0]) - int(used[0]) + cached.get("active_file", 0) + cached.get("inactive_file", 0))
        )


def _named(file: Path) -> dict[str, int]:
    """Lines of "name number ..."."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return {}
    return {words[0]: int(words[1]) for line in lines if len(words := line.split()) > 1 and words[1].isdigit()}
