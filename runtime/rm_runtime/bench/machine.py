"""What a measurement ran on: without it, a figure means nothing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rm_runtime.engines.choice import cpu_flags
from rm_runtime.engines.cores import cpu_quota, usable_cores

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
"""Instruction sets that decide which arithmetic is fast."""

_PACKAGES = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu"), "rm_runtime": ("rm-export",)}


def machine_facts(cpuinfo: Path = Path("/proc/cpuinfo"), meminfo: Path = Path("/proc/meminfo")) -> dict[str, Any]:
    """CPU model and flags, cores (of the machine, by affinity, by quota, usable), memory, load, versions."""
    quota, flags = cpu_quota(), cpu_flags(cpuinfo)
    return {
        "cpu": _field(cpuinfo, "model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": {
            "machine": os.cpu_count(),
            "affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "quota": None if quota == float("inf") else quota,
            "usable": usable_cores(),
        },
        "memory_gib": _memory(meminfo),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions_of("rm_runtime", "numpy", "tokenizers"),
    }


def versions_of(*packages: str) -> dict[str, str]:
    """Versions of installed packages by their distribution's name."""
    found = {}
    for package in packages:
        for name in _PACKAGES.get(package, (package,)):
            try:
                found[name] = version(name)
                break
            except PackageNotFoundError:
                continue
    return found


def _memory(meminfo: Path) -> float | None:
    total = _field(meminfo, "MemTotal")
    return round(int(total.split()[0]) / 2**20, 1) if total else None


def _field(path: Path, key: str) -> str | None:
    """The value of the first "key : value" line."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), None)
