"""Worker: optimum-onnx's export and its dynamic int8, as its documentation says. Runs with the python of a venv of its own.

`VENV/bin/python benchmarks/peer_optimum.py CHECKPOINT FOLDER` writes FOLDER/float and FOLDER/int8, a model.onnx in each.

Sources: https://huggingface.co/docs/optimum-onnx/onnxruntime/usage_guides/quantization (ORTQuantizer with
AutoQuantizationConfig.avx512_vnni, dynamic, per tensor as its default there). Needs an older transformers than ours:
`python -m venv VENV; VENV/bin/pip install torch==2.13.0 "optimum-onnx[onnxruntime]"`.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

from optimum.onnxruntime import AutoQuantizationConfig, ORTModelForSequenceClassification, ORTQuantizer


def main(checkpoint: str, folder: str) -> None:
    packages = ("optimum-onnx", "optimum", "transformers", "torch", "onnxruntime")
    print(", ".join(f"{name} {metadata.version(name)}" for name in packages))
    model = ORTModelForSequenceClassification.from_pretrained(checkpoint, export=True)
    model.save_pretrained(Path(folder) / "float")
    quantizer = ORTQuantizer.from_pretrained(model)
    quantizer.quantize(
        save_dir=Path(folder) / "int8",
        quantization_config=AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False),
        file_suffix="",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
