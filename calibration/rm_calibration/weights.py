"""Weights as symmetric integers: int8 per output channel with the best clip, or int8/int4 in blocks; or as float8.

Everything is elementwise arithmetic or sums of integers, so that the same weights give the same integers on every
machine; and done in strips, so that a [14336, 4096] matrix needs little more memory than its result.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rm_calibration.errors import CalibrationError
from rm_calibration.formats import INT8, NumberFormat
from rm_calibration.symmetric import INT4_LEVELS, INT8_LEVELS, integrated_error, scales_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

CLIP_RULES = ("mse", "none")
"""mse: each channel is clipped where its squared error is least. none: at its largest weight."""

_RATIOS = np.arange(100, 49, -1) / 100
"""Clips that are tried, as shares of a channel's largest weight."""

_BLOCK_RATIOS = {8: (1.0,), 4: tuple(np.arange(100, 59, -5) / 100)}
"""The same for blocks, by bits: a block is too short to gain from a clip at 8 bits."""

_BINS = 2048
"""Of a channel's histogram: 16 for each int8 step of the unclipped channel."""

_STRIP = 1 << 20
"""Weights worked on together."""


class QuantisedWeight(NamedTuple):
    """values: int8, -levels..levels, or float8, of the weight's shape [in, out].

    scales: float32 [out], or [blocks, out] in ONNX DequantizeLinear's layout for block_size along axis 0.
    """

    values: NDArray[Any]
    scales: NDArray[np.float32]


def quantise_weight(weight: NDArray[np.float32], clip: str = "mse", tensor: str = "weight") -> QuantisedWeight:
    """weight float32 [in, out] as int8 with one scale for each output channel.

    A channel of zeros gets scale 1.0. Raises CalibrationError, naming `tensor`, for NaN, infinity or an unknown rule.
    """
    return quantise_with(weight, channel_scales(weight, clip_ratios(weight, clip, tensor), tensor))


def channel_scales(
    weight: NDArray[np.float32],
    ratios: NDArray[np.float32],
    tensor: str = "weight",
    numbers: NumberFormat = INT8,
) -> NDArray[np.float32]:
    """Scales [out] of weight [in, out] that clip each channel at its ratio [out] of its maximum; errors as above."""
    return scales_of(_largest(weight, tensor) * ratios, numbers.largest)


def quantise_with(
    weight: NDArray[np.float32], scales: NDArray[np.float32], numbers: NumberFormat = INT8
) -> QuantisedWeight:
    """weight [in, out] as `numbers` with given scales [out]: rounded to nearest even, saturated."""
    values = np.empty(weight.shape, numbers.dtype)
    for rows in _strips(weight.shape[0], weight.shape[1]):
        values[rows] = numbers.nearest(weight[rows] / scales)
    return QuantisedWeight(values, scales)


def clip_ratios(weight: NDArray[np.float32], clip: str = "mse", tensor: str = "weight") -> NDArray[np.float32]:
    """For each output channel of weight [in, out] the best of the shares 1.00, 0.99, ..., 0.50 of its maximum, [out].

    Each channel's |w| / max |w| is counted in 2,048 linear bins; the error of every ratio is then one product of
    counts and a table that is the same for all weights. Raises as quantise_weight.
    """
    if clip not in CLIP_RULES:
        raise CalibrationError(f"there is no clip rule {clip!r}; choose one of {', '.join(CLIP_RULES)}")
    largest = _largest(weight, tensor)
    if clip == "none":
        return np.ones(largest.shape, np.float32)
    inputs, outputs = weight.shape
    ratios = np.empty(outputs, np.float32)
    for channels in _strips(outputs, inputs):
        width = len(largest[channels])
        unit = np.where(largest[channels] > 0, largest[channels], 1)
        bins = np.minimum(np.abs(weight[:, channels]) / unit * _BINS, _BINS - 1).astype(np.intp)
        bins += np.arange(width) * _BINS
        counts = np.bincount(bins.reshape(-1), minlength=width * _BINS).reshape(width, _BINS)
        ratios[channels] = _RATIOS[np.argmin(counts.astype(np.float64) @ _bin_errors(), axis=1)]
    ratios[largest == 0] = 1
    return ratios


def dequantise(quantised: QuantisedWeight, block_size: int | None = None) -> NDArray[np.float32]:
    """What the engine multiplies with, float32 [in, out]: values times their channel's or their block's scale."""
    values, scales = quantised
    if block_size is None:
        return values * scales
    return values * np.repeat(scales, block_size, axis=0)[: len(values)]


def quantise_blockwise(
    weight: NDArray[np.float32],
    bits: int,
    block_size: int,
    tensor: str = "weight",
    stored: Callable[[NDArray[np.float32]], NDArray[np.float32]] = np.asarray,
) -> QuantisedWeight:
    """weight float32 [in, out] with a scale for each block_size inputs of each output channel, [ceil(in / block), out].

    bits: 8, or 4 (each block clipped where its squared error is least). The values of 4 bits are not packed yet.
    stored: ideal scales -> those a narrower type can store, for which the integers are then made.
    Raises CalibrationError, naming `tensor`, for NaN or infinity; ValueError for other bits or an empty block.
    """
    if bits not in _BLOCK_RATIOS or block_size < 1:
        raise ValueError(f"{bits} bits in blocks of {block_size}; bits are 8 or 4, blocks at least 1 long")
    _largest(weight, tensor)
    levels = INT8_LEVELS if bits == 8 else INT4_LEVELS
    inputs, outputs = weight.shape
    values = np.empty(weight.shape, np.int8)
    scales = np.empty((-(-inputs // block_size), outputs), np.float32)
    for blocks in _strips(len(scales), block_size * outputs):
        piece = weight[blocks.start * block_size : blocks.stop * block_size]
        padding = -len(piece) % block_size
        grouped = np.pad(piece, ((0, padding), (0, 0))).reshape(-1, block_size, outputs)
        scales[blocks] = stored(_block_scales(grouped, levels, _BLOCK_RATIOS[bits]))
        integers = _stored(grouped, scales[blocks, None], levels).reshape(-1, outputs)
        values[blocks.start * block_size : blocks.stop * block_size] = integers[: len(piece)]
    return QuantisedWeight(values, scales)


def _block_scales(grouped: NDArray[np.float32], levels: int, ratios: tuple[float, ...]) -> NDArray[np.float32]:
    """grouped [blocks, block_size, out] -> scales [blocks, out] of least squared error; the widest of equals."""
    amax = np.abs(grouped).max(axis=1)
    widest = scales_of(amax, levels)
    if len(ratios) == 1:
        return widest
    relative = grouped / np.where(amax == 0, np.float32(1), amax)[:, None]
    least, best = np.full(amax.shape, np.inf, np.float32), np.ones(amax.shape, np.float32)
    for ratio in ratios:
        step = np.float32(ratio / levels)
        error = relative - np.clip(np.rint(relative / step), -levels, levels) * step
        squared = np.zeros(amax.shape, np.float32)
        for row in range(error.shape[1]):  # summed in this order on every machine
            squared += error[:, row] * error[:, row]
        best = np.where(squared < least, np.float32(ratio), best)
        least = np.minimum(squared, least)
    return np.where(amax == 0, widest, scales_of(amax * best, levels))


def _stored(weight: NDArray[np.float32], scales: NDArray[np.float32], levels: int) -> NDArray[np.int8]:
    rounded: NDArray[np.float32] = np.rint(weight / scales)
    return np.clip(rounded, -levels, levels).astype(np.int8)


def _largest(weight: NDArray[np.float32], tensor: str) -> NDArray[np.float32]:
    """max |w| of each output channel [out]."""
    if weight.ndim != 2 or not weight.size:
        raise CalibrationError(f"weight {tensor!r} has shape {list(weight.shape)}; a matrix [in, out] is quantised")
    largest: NDArray[np.float32] = np.maximum(weight.max(axis=0), -weight.min(axis=0)).astype(np.float32)
    if not np.isfinite(largest).all():
        channel = int(np.flatnonzero(~np.isfinite(largest))[0])
        raise CalibrationError(
            f"weight {tensor!r} holds {largest[channel]} in output channel {channel}; the checkpoint is damaged"
        )
    return largest


@cache
def _bin_errors() -> NDArray[np.float64]:
    """The mean squared error of a value in each bin of [0, 1) under each clip ratio, [bins, ratios], times 2**34.

    Rounded to whole numbers, so that sums of up to 2**20 of them are exact in float64 in whatever order a
    matrix product takes them.
    """
    edges = np.arange(_BINS + 1)[:, None] / _BINS
    means = np.diff(integrated_error(edges, _RATIOS / INT8_LEVELS, INT8_LEVELS), axis=0) * _BINS
    return np.rint(means * 2.0**34)


def _strips(length: int, row_size: int) -> Iterator[slice]:
    """Consecutive ranges of 0..length, each of about _STRIP values when a row has row_size."""
    step = max(1, _STRIP // row_size)
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
