"""SmoothQuant's migration: activation channels are divided, the weights that read them multiplied. Function-preserving.

Factors are powers of two, so every fold is exact in floating point. They go into what makes the activation (an
RMSNorm's weight, the columns of v or up), or, where nothing can take them (LayerNorm with a residual), into a Mul
before the product. Source: Xiao et al., SmoothQuant, 2022.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rm_calibration.smoothing import smoothing_factors, source_exponents
from rm_export.lowering.gemms import Fold, Gemm, find_fold, gemm_groups
from rm_export.tensors import StreamedTensor, scaled


class Smooth(ir.passes.InPlacePass):
    """Requires a float32 graph. Ensures the same function with smoother activations."""

    def __init__(self, exponents: Mapping[str, NDArray[np.int8]]) -> None:
        """exponents: activation name (lowering.gemms.activation_name) -> e [channels]; channels are divided by 2**e."""
        super().__init__()
        self.exponents = exponents

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for name, gemms in gemm_groups(model.graph).items():
            exponents = self.exponents.get(name)
            if exponents is None or not exponents.any():
                continue
            factors = smoothing_factors(exponents)
            fold = find_fold(gemms[0].activation)
            if fold is None:
                _divide(model.graph, name, gemms, factors)
            else:
                _fold(fold, exponents)
            for gemm in gemms:
                gemm.weight.const_value = _scaled(gemm.weight, factors, axis=0)
            modified = True
        return ir.passes.PassResult(model, modified)


def _fold(fold: Fold, exponents: NDArray[np.int8]) -> None:
    own = exponents if fold.tied is None else source_exponents(exponents, fold.tied)
    inverse = smoothing_factors(-own)
    fold.weight.const_value = _scaled(fold.weight, inverse, axis=-1)
    if fold.bias is not None:
        fold.bias.const_value = _scaled(fold.bias, inverse, axis=-1)


def _divide(graph: ir.Graph, name: str, gemms: list[Gemm], factors: NDArray[np.float32]) -> None:
    activation = gemms[0].activation
    inverse = ir.Value(
        name=f"{name}.smoothing",
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape([len(factors)]),
        const_value=ir.Tensor(1 / factors, name=f"{name}.smoothing"),
    )
    graph.register_initializer(inverse)
    product = ir.node("Mul", [activation, inverse], name=f"{gemms[0].node.name}/input/Mul")
    smoothed = product.outputs[0]
    smoothed.name, smoothed.dtype, smoothed.shape = f"{name}.smoothed", ir.DataType.FLOAT, activation.shape
    graph.insert_before(gemms[0].node, product)
    for gemm in gemms:
        gemm.node.replace_input_with(0, smoothed)


def _scaled(value: ir.Value, factors: NDArray[np.float32], axis: int) -> StreamedTensor:
    tensor = value.const_value
    assert isinstance(tensor, StreamedTensor)
    return scaled(tensor, factors, axis)
