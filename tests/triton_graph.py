"""The graph model of a repository, run by Python: the wheel's server has no ONNX Runtime backend.

Everything around it is real: the configuration but for its `backend`, Triton's queue and ensembles, the tensors.
"""

from __future__ import annotations

from pathlib import Path

_PROGRAM = '''"""As Triton's onnxruntime backend: the requests of a batch, which have one shape, run as one array."""

from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])

    def execute(self, requests):
        names = [tensor.name for tensor in self.session.get_inputs()]
        arrays = [[pb_utils.get_input_tensor_by_name(of, name).as_numpy() for of in requests] for name in names]
        outputs = self.session.run(None, dict(zip(names, map(np.concatenate, arrays))))
        ends = np.cumsum([len(array) for array in arrays[0]])[:-1]
        parts = zip(*(np.split(output, ends) for output in outputs))
        given = [tensor.name for tensor in self.session.get_outputs()]
        return [pb_utils.InferenceResponse(list(map(pb_utils.Tensor, given, of))) for of in parts]
'''


def run_graph_in_python(repository: Path, name: str) -> None:
    """Give the graph model of scoring model `name` to the Python backend."""
    folder = repository / f"{name}_graph"
    config = (folder / "config.pbtxt").read_text()
    assert config.count('backend: "onnxruntime"') == 1
    (folder / "config.pbtxt").write_text(config.replace('backend: "onnxruntime"', 'backend: "python"'))
    (folder / "1" / "model.py").write_text(_PROGRAM)
