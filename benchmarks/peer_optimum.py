"""Worker: optimum-onnx's export and its dynamic int8, as its documentation says. Runs with a python of its own.

`VENV/bin/python benchmarks/peer_optimum.py CHECKPOINT FOLDER` writes a model.onnx into FOLDER/float, int8-tensor
(per_channel=False, as the documentation's example) and int8-channel (per_channel=True, the function's default).

Source: https://huggingface.co/docs/optimum-onnx/onnxruntime/usage_guides/quantization. Needs an older transformers than
ours: `python -m venv VENV; VENV/bin/pip install torch==2.13.0 "optimum-onnx[onnxruntime]"`.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

from optimum.onnxruntime import AutoQuantizationConfig, ORTModelForSequenceClassification, ORTQuantizer

PACKAGES = ("optimum-onnx", "optimum", "transformers", "torch", "onnxruntime")


def main(checkpoint: str, folder: str) -> None:
    print(", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES))
    model = ORTModelForSequenceClassification.from_pretrained(checkpoint, export=True)
    model.save_pretrained(Path(folder) / "float")
    quantizer = ORTQuantizer.from_pretrained(model)
    for name, per_channel in (("int8-tensor", False), ("int8-channel", True)):
        quantizer.quantize(
            save_dir=Path(folder) / name,
            quantization_config=AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=per_channel),
            file_suffix="",
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
