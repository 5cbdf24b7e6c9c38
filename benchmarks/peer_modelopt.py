"""Worker: nvidia-modelopt's ONNX int8, as its documentation says. Runs with the python of a venv of its own.

`VENV/bin/python benchmarks/peer_modelopt.py MODEL.onnx ROWS.npz OUTPUT.onnx entropy|max whole|per-node`

per-node: `calibrate_per_node`, which its documentation offers for large models.
Source: https://nvidia.github.io/Model-Optimizer/guides/_onnx_quantization.html. `high_precision_dtype` is fp32, because
the CPU engine that judges computes float16 no faster and the other candidates are float32 around their integers.
The Python call rather than the command line: only it takes a reader, that is rows of different lengths.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import numpy as np
from modelopt.onnx.quantization import quantize
from onnxruntime.quantization.calibrate import CalibrationDataReader


class Rows(CalibrationDataReader):
    """Rows of ids, fed one by one: no padding enters the ranges."""

    def __init__(self, path: Path) -> None:
        rows = np.load(path)
        self._all = [rows[name] for name in rows.files]
        self.rewind()

    def get_next(self) -> dict[str, np.ndarray] | None:
        row = next(self._rows, None)
        return None if row is None else {"input_ids": row[None], "attention_mask": np.ones_like(row[None])}

    def get_first(self) -> dict[str, np.ndarray]:
        """One row, for shapes; the reading goes on from the start."""
        return {"input_ids": self._all[0][None], "attention_mask": np.ones_like(self._all[0][None])}

    def rewind(self) -> None:
        self._rows = iter(self._all)


def main(model: str, rows: str, output: str, method: str, choice: str) -> None:
    print(*(f"{name} {metadata.version(name)}" for name in ("nvidia-modelopt", "onnxruntime-gpu", "onnx")))
    quantize(
        model,
        quantize_mode="int8",
        calibration_data_reader=Rows(Path(rows)),
        calibration_method=method,
        calibration_eps=["cpu"],
        calibrate_per_node=choice == "per-node",
        high_precision_dtype="fp32",
        output_path=output,
        log_level="INFO",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
