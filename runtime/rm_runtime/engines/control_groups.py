"""Linux control groups that bind this process: their folders, whatever the version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_UNIFIED = ("sys/fs/cgroup", "sys/fs/cgroup/unified")


def group_folders(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the process's groups, own ones and those above, that may state a limit of `controller` ("cpu").

    A group is bound by every group above it. Inside a container the process's own path may not be visible: the mount's
    top is then the container's group, and it is always given. None where the system has no groups.
    Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/cgroups.rst.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux, or /proc is hidden
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        own = Path(path.lstrip("/"))
        for mount in _mounts(controller, controllers):
            for step in (own, *own.parents):
                yield root / mount / step


def words_of(file: Path) -> list[str]:
    """What a group's file says; nothing if it is not there."""
    try:
        return file.read_text().split()
    except OSError:
        return []


def _mounts(controller: str, controllers: str) -> tuple[str, ...]:
    """Where a line of /proc/self/cgroup with these controllers (version 2: none are named) lies, if it matters."""
    if not controllers:
        return _UNIFIED
    if controller not in controllers.split(","):
        return ()
    return tuple(dict.fromkeys((f"sys/fs/cgroup/{controller}", f"sys/fs/cgroup/{controllers}")))
