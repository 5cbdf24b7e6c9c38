"""What engine="auto" takes: a rule made of measurements."""

from __future__ import annotations

from pathlib import Path

ENCODERS = frozenset({"deberta-v2"})
"""Values of the manifest's architecture.model_type whose int8 bundles OpenVINO does not run clearly faster."""


def preferred(precision: str, model_type: str, flags: frozenset[str]) -> tuple[str, ...]:
    """Engines for a CPU bundle, best first.

    precision, model_type: of the bundle's manifest. flags: of the CPU, as cpu_flags gives them.
    Source: benchmarks/engines.py on a CPU with AVX512-VNNI, its table in docs/performance.md. OpenVINO is faster in
    int8 decoders; in float32, float16, weight-only precisions and encoders ONNX Runtime is as fast or faster. CPUs
    without VNNI were not measured. "openvino-bf16" is never taken unasked: it decides otherwise than the bundle.
    """
    if precision == "int8" and model_type not in ENCODERS and "avx512_vnni" in flags:
        return "openvino", "onnxruntime"
    return "onnxruntime", "openvino"


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction sets of this CPU as Linux names them on x86 ("avx512_vnni"); none where it does not tell."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").partition(":")[2].split())
