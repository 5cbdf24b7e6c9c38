"""What engine="auto" takes: a rule made of measurements."""

from __future__ import annotations

from pathlib import Path


def preferred(precision: str, flags: frozenset[str]) -> tuple[str, ...]:
    """Engines for a CPU bundle, best first.

    precision: of the bundle's manifest. flags: of the CPU, as cpu_flags gives them.
    Source: benchmarks/whole_models.py and benchmarks/engines.py on a CPU with AVX512-VNNI, tables in
    docs/performance.md. OpenVINO is faster in int8, on one thread and more so on two; in float32, float16 and
    weight-only precisions ONNX Runtime is as fast, loads faster and takes less memory. CPUs without VNNI were not
    measured. "openvino-bf16" is never taken unasked: it decides otherwise than the bundle.
    """
    if precision == "int8" and "avx512_vnni" in flags:
        return "openvino", "onnxruntime"
    return "onnxruntime", "openvino"


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction sets of this CPU as Linux names them on x86 ("avx512_vnni"); none where it does not tell."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").partition(":")[2].split())
