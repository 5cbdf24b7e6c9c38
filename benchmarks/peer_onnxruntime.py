"""Worker: onnxruntime.quantization's static QDQ, as its documentation says: pre-process, then quantize_static.

`python benchmarks/peer_onnxruntime.py MODEL.onnx ROWS.npz OUTPUT.onnx entropy|percentile default|matmul`

default: quantize_static with activation and weight types for x86 with VNNI (uint8, int8) and no other choice.
matmul: only MatMul by constants, int8 weights per output channel: norms and the residual stream stay float.
Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html and quantize_static's docstring.
Needs sympy for the pre-processing. Imports nothing of ours, so that its peak memory is its own.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

METHODS = {"entropy": CalibrationMethod.Entropy, "percentile": CalibrationMethod.Percentile}
# Its histograms refuse rows of different lengths in one go; CalibStridedMinMax 1 hands them over one by one.
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {"extra_options": {"CalibStridedMinMax": 1}},
    "matmul": {
        "op_types_to_quantize": ["MatMul"],
        "per_channel": True,
        "extra_options": {"CalibStridedMinMax": 1, "MatMulConstBOnly": True},
    },
}
EXTERNAL_BEYOND = 2**30
"""Bytes of weights beyond which they are kept beside the graph; a protobuf holds at most 2 GiB."""


class Rows(CalibrationDataReader):
    """Rows of ids, one by one and unpadded: no padding enters the ranges."""

    def __init__(self, path: Path) -> None:
        rows = np.load(path)
        self._all = [rows[name] for name in rows.files]
        self.set_range(0, len(self._all))

    def __len__(self) -> int:
        return len(self._all)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._left = iter(self._all[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        row = next(self._left, None)
        return None if row is None else {"input_ids": row[None], "attention_mask": np.ones_like(row[None])}


def main(model: str, rows: str, output: str, method: str, choice: str) -> None:
    print("onnxruntime", onnxruntime.__version__, "onnx", onnx.__version__)
    weights = Path(model).with_suffix(".onnx.data")
    external = weights.exists() and weights.stat().st_size > EXTERNAL_BEYOND
    with tempfile.TemporaryDirectory(dir=Path(output).parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        # Its symbolic shape inference does not know opset 23's Attention and fails; ONNX's own does.
        quant_pre_process(
            model,
            prepared,
            skip_symbolic_shape=True,
            save_as_external_data=True,
            all_tensors_to_one_file=True,
        )
        quantize_static(
            prepared,
            output,
            Rows(Path(rows)),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=METHODS[method],
            use_external_data_format=external,
            **OPTIONS[choice],
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
