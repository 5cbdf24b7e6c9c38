"""What a quantised value is stored as next to its scale: whole steps of int8, or the E4M3 numbers of float8.

E4M3: 1 sign, 4 exponent and 3 mantissa bits, largest 448, no infinity. Source: Micikevicius et al., FP8 Formats for
Deep Learning, 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from rm_calibration.symmetric import INT8_LEVELS


@dataclass(frozen=True)
class NumberFormat:
    """A set of numbers, symmetric around 0.

    name: of the precision. dtype: numpy's. largest: the number that the largest value becomes; value / scale is what is
    rounded. clips: whether less error is made by clipping large values: steps of one size get finer, a float's do not.
    """

    name: str
    dtype: np.dtype[Any]
    largest: int
    clips: bool

    def nearest(self, numbers: NDArray[np.float32]) -> NDArray[Any]:
        """Float32 numbers as `dtype`, of the same shape: rounded to the nearest, ties to even, saturated at largest."""
        within = np.clip(numbers, -self.largest, self.largest)  # numpy's cast beyond E4M3's largest gives NaN
        return (np.rint(within) if np.issubdtype(self.dtype, np.integer) else within).astype(self.dtype)


INT8 = NumberFormat("int8", np.dtype(np.int8), INT8_LEVELS, clips=True)
FLOAT8 = NumberFormat("fp8", np.dtype(ml_dtypes.float8_e4m3fn), 448, clips=False)
FORMATS = {numbers.name: numbers for numbers in (INT8, FLOAT8)}
"""By the name of the precision that has them on both sides of its products."""
