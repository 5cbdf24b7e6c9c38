"""Symmetric integers: x is stored as round(x / scale) within -levels..levels; 127 levels for int8, 7 for int4.

The most negative integer stays unused, so that the range is the same on both sides (TensorRT's rule as well).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

INT8_LEVELS = 127
INT4_LEVELS = 7

SMALLEST_SCALE = np.finfo(np.float32).tiny
"""Scales are never subnormal: engines may flush those to zero and divide by it."""


def scale_of(amax: float, levels: int = INT8_LEVELS) -> float:
    """amax / levels as a float32 value; scales_of for one number."""
    return float(scales_of(np.asarray(amax), levels))


def scales_of(amax: NDArray[np.floating], levels: int = INT8_LEVELS) -> NDArray[np.float32]:
    """Scales whose largest level is amax, of the same shape, at least the smallest normal float32.

    Where amax is 0 (what was always zero) the scale is 1.0: zeros stay exact, float16 can hold it, and a value
    nobody expected is stored coarsely instead of being lost.
    """
    scales = np.maximum((amax / np.float32(levels)).astype(np.float32), SMALLEST_SCALE)
    return np.where(amax == 0, np.float32(1), scales)


def integrated_error(x: NDArray[np.float64], step: float | NDArray[np.float64], levels: int) -> NDArray[np.float64]:
    """Integral from 0 to x >= 0 of (t - stored(t))**2 dt, where stored values are 0, step, ..., levels * step.

    x and step broadcast. A whole step adds step**3 / 12; beyond the last level the distance to it counts.
    """
    level = np.minimum(np.floor(x / step + 0.5), levels)
    rest = x - level * step
    error: NDArray[np.float64] = level * (step * step * step / 12) + rest * rest * rest / 3
    return error
