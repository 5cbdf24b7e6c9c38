"""Is a quantised weight still the weight? Value gates that a wrong packing cannot pass.

Shapes and counts are right when a matrix is packed transposed, permuted, or with another tensor's scales; only its
values tell. So every quantised weight is dequantised as the engine would do it and compared with its source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rm_calibration.errors import CalibrationError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STRIP_ROWS = 256


@dataclass(frozen=True)
class Fidelity:
    """correlation: cosine of the two matrices (weights have no mean worth removing). norm_ratio: new / source.

    channel_correlation: the cosine of the output channel where it is smallest; channel: which one.
    Channels of zeros on both sides count as 1; norm_ratio is 1 for two zero matrices.
    """

    correlation: float
    norm_ratio: float
    channel_correlation: float
    channel: int


@dataclass(frozen=True)
class FidelityBounds:
    """What rounding alone cannot miss, and a wrong packing cannot reach."""

    correlation: float
    norm_tolerance: float
    channel_correlation: float


FIDELITY_BOUNDS = {
    "int8": FidelityBounds(correlation=0.99, norm_tolerance=0.02, channel_correlation=0.5),
    "int4": FidelityBounds(correlation=0.95, norm_tolerance=0.08, channel_correlation=0.5),
    "fp8": FidelityBounds(correlation=0.998, norm_tolerance=0.0625, channel_correlation=0.5),
}
"""By format. A step s gives an error of s / sqrt(12), and a relative error r gives a correlation of 1 - r**2 / 2.

8 bits: normal weights have r = 0.009 (correlation 0.99996); 0.99 allows r = 0.14, a largest weight of 60 standard
deviations in every channel. 4 bits in blocks of 32 to 128: r = 0.09 to 0.11 (0.994 to 0.996); 0.95 allows r = 0.3.
Rounding shrinks the norm by r**2 / 2 at most. A matrix in another order has a correlation near 0, one with an
eighth of it in another order 0.88. One channel may hold a single large weight and many below half a step: at
14,336 inputs, int8 then still gives 0.9 and int4 in blocks of 128 gives 0.78; a channel from elsewhere gives 0.

fp8 (E4M3): with 3 mantissa bits the step is 1/8 of the power of two below a number m in [1, 2), whatever its size.
r**2 = (1/8)**2 / 12 / mean(m**2) = 0.0013 / 2.2, r = 0.024: a correlation of 0.9997. No number is off by more than 1/16
of itself, so 0.998 and 1/16 of the norm hold for any weights, however they are spread. One channel may consist of
float16's smallest numbers.
"""


def weight_fidelity(weight: NDArray[np.float32], dequantised: NDArray[np.float32]) -> Fidelity:
    """How much `dequantised` is `weight`, both [in, out]. Sums are float64. Raises ValueError for unequal shapes."""
    if weight.shape != dequantised.shape or weight.ndim != 2:
        raise ValueError(f"shapes {list(weight.shape)} and {list(dequantised.shape)}; two equal matrices are compared")
    return _fidelity(_channel_sums(weight, dequantised))


def check_fidelity(
    tensor: str, weight: NDArray[np.float32], dequantised: NDArray[np.float32], numbers: str = "int8"
) -> Fidelity:
    """The fidelity of `dequantised` [in, out] to `weight` [in, out], if it is within FIDELITY_BOUNDS[numbers].

    Raises CalibrationError, naming the tensor and what is off, if not: unequal shapes, NaN, a low correlation of
    the whole or of one output channel, a wrong norm.
    """
    check = FidelityCheck(tensor, numbers)
    check.add(weight, dequantised)
    return check.result()


class FidelityCheck:
    """check_fidelity for a weight that comes a few output channels at a time; three sums a channel are kept."""

    def __init__(self, tensor: str, numbers: str = "int8") -> None:
        self._tensor, self._numbers = tensor, numbers
        self._sums: list[NDArray[np.float64]] = []

    def add(self, weight: NDArray[np.float32], dequantised: NDArray[np.float32]) -> None:
        """The next output channels of both, [in, n]."""
        if weight.shape != dequantised.shape:
            reason = f"has shape {list(dequantised.shape)} instead of {list(weight.shape)}"
            raise _unfaithful(self._tensor, self._numbers, reason)
        self._sums.append(_channel_sums(weight, dequantised))

    def result(self) -> Fidelity:
        """Of everything added. Raises CalibrationError as check_fidelity does."""
        bounds, fidelity = FIDELITY_BOUNDS[self._numbers], _fidelity(np.concatenate(self._sums, axis=1))
        if not fidelity.correlation >= bounds.correlation:
            reason = f"correlates with it by {fidelity.correlation:.4f}, at least {bounds.correlation} is due"
        elif not abs(fidelity.norm_ratio - 1) <= bounds.norm_tolerance:
            reason = f"has {fidelity.norm_ratio:.4f} times its norm, {1 - bounds.norm_tolerance:.2f} to "
            reason += f"{1 + bounds.norm_tolerance:.2f} is right"
        elif not fidelity.channel_correlation >= bounds.channel_correlation:
            reason = f"correlates with it by {fidelity.channel_correlation:.4f} in output channel {fidelity.channel}, "
            reason += f"at least {bounds.channel_correlation} is due"
        else:
            return fidelity
        raise _unfaithful(self._tensor, self._numbers, reason)


def _channel_sums(weight: NDArray[np.float32], dequantised: NDArray[np.float32]) -> NDArray[np.float64]:
    """For each output channel the inner product and the two squared norms, [3, out]."""
    sums = np.zeros((3, weight.shape[1]))
    for start in range(0, len(weight), _STRIP_ROWS):
        one = weight[start : start + _STRIP_ROWS].astype(np.float64)
        other = dequantised[start : start + _STRIP_ROWS].astype(np.float64)
        sums += np.stack([(one * other).sum(axis=0), (one * one).sum(axis=0), (other * other).sum(axis=0)])
    return sums


def _fidelity(sums: NDArray[np.float64]) -> Fidelity:
    product, source, copy = sums
    channels = _cosine(product, source, copy)
    worst = int(np.argmin(channels))
    norms = source.sum(), copy.sum()
    return Fidelity(
        correlation=float(_cosine(product.sum(), *norms)),
        norm_ratio=float(np.sqrt(norms[1] / norms[0])) if norms[0] else float(1 + norms[1]),
        channel_correlation=float(channels[worst]),
        channel=worst,
    )


def _unfaithful(tensor: str, numbers: str, reason: str) -> CalibrationError:
    return CalibrationError(
        f"the {numbers} copy of weight {tensor!r} {reason}; it was packed wrongly, or must stay in float"
    )


def _cosine(
    product: NDArray[np.float64], source: NDArray[np.float64], copy: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Of vectors with these inner products and squared norms; 1 for two zero vectors, 0 for one."""
    norms = np.sqrt(source) * np.sqrt(copy)
    cosine: NDArray[np.float64] = np.where(norms == 0, (source == copy) * 1.0, product / np.where(norms == 0, 1, norms))
    return cosine
