"""How a float weight becomes integers and scales; both are computed from the source anew when they are written.

A scale is rounded up to what the type it is stored in can hold *before* the integers are made, so that they are made
for the number they will be multiplied by, and nothing clips that did not clip before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rm_calibration.fidelity import FidelityCheck
from rm_calibration.formats import INT8, NumberFormat
from rm_calibration.weights import (
    QuantisedWeight,
    channel_scales,
    clip_ratios,
    dequantise,
    quantise_blockwise,
    quantise_with,
)
from rm_export.errors import ExportError
from rm_export.tensors import Array, Computed, StreamedTensor, to_float32, transpose

FLOAT = ir.DataType.FLOAT
_INTEGERS = {8: ir.DataType.INT8, 4: ir.DataType.INT4}


@dataclass(frozen=True)
class ChannelPacking:
    """A scale for each output channel; where the format clips, it is clipped where its squared error is least."""

    source: StreamedTensor
    scale_type: ir.DataType = FLOAT
    numbers: NumberFormat = INT8
    block_size: None = None

    @property
    def format_name(self) -> str:
        """As in FIDELITY_BOUNDS."""
        return self.numbers.name

    @property
    def dtype(self) -> ir.DataType:
        """Of the values."""
        return ir.DataType.from_numpy(self.numbers.dtype)

    @property
    def scale_dims(self) -> tuple[int, ...]:
        """[out]."""
        return (self.source.dims[1],)

    @cached_property
    def _scales(self) -> NDArray[np.float32]:
        name, numbers = str(self.source.name), self.numbers
        clip = "mse" if numbers.clips else "none"
        found = [channel_scales(w, clip_ratios(w, clip, name), name, numbers) for w in output_channels(self.source)]
        return rounded_up(np.concatenate(found), self.scale_type, name, numbers.largest)

    def scales(self) -> NDArray[np.float32]:
        """Scales [out]; kept once found, since the search takes longer than everything else here."""
        return self._scales

    def pieces(self) -> Iterator[tuple[NDArray[np.float32], QuantisedWeight]]:
        """The weight and what becomes of it, some output channels [in, n] at a time."""
        start = 0
        for weight in output_channels(self.source):
            yield weight, quantise_with(weight, self._scales[start : start + weight.shape[1]], self.numbers)
            start += weight.shape[1]


@dataclass(frozen=True)
class BlockPacking:
    """int8 or int4 with a scale for each block_size inputs of each output channel."""

    source: StreamedTensor
    bits: int
    block_size: int
    scale_type: ir.DataType = FLOAT

    @property
    def format_name(self) -> str:
        """As in FIDELITY_BOUNDS."""
        return f"int{self.bits}"

    @property
    def dtype(self) -> ir.DataType:
        """Of the values."""
        return _INTEGERS[self.bits]

    @property
    def scale_dims(self) -> tuple[int, ...]:
        """[ceil(in / block_size), out]."""
        rows, columns = self.source.dims
        return (-(-rows // self.block_size), columns)

    def scales(self) -> NDArray[np.float32]:
        """Scales [blocks, out]."""
        return np.concatenate([packed.scales for _, packed in self.pieces()], axis=1)

    def pieces(self) -> Iterator[tuple[NDArray[np.float32], QuantisedWeight]]:
        """The weight and what becomes of it, some output channels [in, n] at a time."""
        for weight in output_channels(self.source):
            yield weight, self.quantised(weight)

    def quantised(self, weight: NDArray[np.float32]) -> QuantisedWeight:
        """Some output channels [in, n] of the weight; a channel's integers do not depend on the others."""
        name = str(self.source.name)
        return quantise_blockwise(
            weight, self.bits, self.block_size, name, lambda scales: rounded_up(scales, self.scale_type, name)
        )


Packing = ChannelPacking | BlockPacking
"""A rule that makes one weight's integers (or float8), and scales that `scale_type` holds exactly."""


class PackedValues(Computed):
    """The integers (or float8) [in, out] of a packing, as DequantizeLinear reads them.

    Computing them raises CalibrationError if they are not the weight any more.
    """

    def __init__(self, packing: Packing, name: str) -> None:
        super().__init__(self._values, packing.dtype, packing.source.dims, name)
        self.packing = packing

    def _values(self) -> Array:
        packing, values, start = self.packing, np.empty(self.dims, self.dtype.numpy()), 0
        check = FidelityCheck(str(packing.source.name), packing.format_name)
        for weight, packed in packing.pieces():
            read = dequantise(packed, packing.block_size)
            check.add(held(weight, packing.scale_type), held(read, packing.scale_type))
            values[:, start : start + weight.shape[1]] = packed.values
            start += weight.shape[1]
        check.result()
        return values


class PackedScales(Computed):
    """The scales of a packing in float32; a precision pass narrows them without changing a number."""

    def __init__(self, packing: Packing, name: str) -> None:
        super().__init__(packing.scales, FLOAT, packing.scale_dims, name)
        self.packing = packing


def output_channels(source: StreamedTensor) -> Iterator[NDArray[np.float32]]:
    """A weight [in, out] as pieces [in, n]: a checkpoint's [out, in] tensor is read a block at a time, never whole."""
    for piece in transpose(source).blocks():
        yield to_float32(piece).T


def rounded_up(
    scales: NDArray[np.float32], dtype: ir.DataType, tensor: str, largest: int = INT8.largest
) -> NDArray[np.float32]:
    """For each positive scale the least number of `dtype` that is no smaller; so never 0, subnormal if need be.

    Raises ExportError, naming the tensor, if `largest` times it is beyond the type.
    """
    if dtype == FLOAT:
        return scales
    with np.errstate(over="ignore"):
        near = scales.astype(dtype.numpy())
    bits = near.view(np.uint16)
    bits += (to_float32(near) < scales).astype(np.uint16)  # the next bit pattern is the next positive number
    up = to_float32(near)
    with np.errstate(over="ignore"):
        reached = (np.float32(largest) * up).astype(dtype.numpy())
    if not np.isfinite(reached.astype(np.float32)).all():
        beyond = f"{largest * scales.max():.6g}, beyond {dtype.short_name()}"
        raise ExportError(f"{tensor!r} reaches {beyond}; export it with --bf16 instead")
    return up


def held(weight: NDArray[np.float32], dtype: ir.DataType) -> NDArray[np.float32]:
    """The weight as a plain export in that type would have it: what that type loses is no packing error."""
    return weight if dtype == FLOAT else to_float32(weight.astype(dtype.numpy()))
