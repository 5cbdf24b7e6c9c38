"""Cores that may be used: affinity and the quotas of control groups, both versions."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from rm_runtime.engines import cores
from rm_runtime.engines.cores import cpu_quota, usable_cores

UNIFIED = "sys/fs/cgroup"
CPU = "sys/fs/cgroup/cpu,cpuacct"


def machine(root: Path, groups: str, **files: str) -> Path:
    """A root folder with /proc/self/cgroup and the files of its control groups."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/app\n", {f"{UNIFIED}/app/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/app\n", {f"{UNIFIED}/app/cpu.max": "max 100000\n"}, math.inf),
        ("0::/\n", {f"{UNIFIED}/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {f"{UNIFIED}/a/b/cpu.max": "max 100000\n", f"{UNIFIED}/a/cpu.max": "200000 100000\n"}, 2),
        ("0::/hidden/docker\n", {f"{UNIFIED}/cpu.max": "100000 100000\n"}, 1),
        (
            "4:cpu,cpuacct:/app\n0::/app\n",
            {f"{CPU}/app/cpu.cfs_quota_us": "250000\n", f"{CPU}/app/cpu.cfs_period_us": "100000\n"},
            2.5,
        ),
        (
            "4:cpu,cpuacct:/app\n",
            {f"{CPU}/app/cpu.cfs_quota_us": "-1\n", f"{CPU}/app/cpu.cfs_period_us": "100000\n"},
            math.inf,
        ),
        (
            "4:cpu,cpuacct:/docker/1f2e\n",
            {f"{CPU}/cpu.cfs_quota_us": "50000\n", f"{CPU}/cpu.cfs_period_us": "100000\n"},
            0.5,
        ),
        ("5:cpuset:/app\n", {f"{UNIFIED}/cpuset/app/cpu.max": "100000 100000\n"}, math.inf),
    ],
    ids=[
        "version 2",
        "version 2, unlimited",
        "version 2, in a container",
        "version 2, bound from above",
        "version 2, own path hidden",
        "version 1",
        "version 1, unlimited",
        "version 1, own path hidden",
        "another controller",
    ],
)
def test_the_quota_is_what_the_control_groups_grant(
    tmp_path: Path, groups: str, files: dict[str, str], quota: float
) -> None:
    assert cpu_quota(machine(tmp_path, groups, **files)) == quota


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) == math.inf


@pytest.mark.parametrize(("quota", "used"), [(0.25, 1), (1.5, 2), (2.0, 2), (64.0, 3), (math.inf, 3)])
def test_cores_are_those_of_the_affinity_mask_within_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float, used: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    assert usable_cores() == used
