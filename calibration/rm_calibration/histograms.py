"""A histogram of magnitudes that never has to grow: its bins are the leading bits of the floats themselves.

Linear bins, as TensorRT and ONNX Runtime use them, must be stretched when a larger value comes, and lose the bulk
of a tensor in a handful of bins when its first token is a thousand times as large (massive activations, Sun et
al. 2024, arXiv:2402.17762). The upper 16 bits of a float32 - exponent and 7 bits of mantissa - number bins that
are everywhere 0.4 to 0.8 % wide, for every range. Counts are integers, so neither the order nor the batching of
what was observed can change them.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_calibration.errors import CalibrationError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DROPPED_BITS = 16
_BINS = 0x7F80
"""Bins of finite magnitudes; those from here on are infinity and NaN."""

_CHUNK = 1 << 20
"""Values counted together: temporaries of 12 MiB."""


class RunningHistogram:
    """How often each magnitude |x| of one tensor occurred. 255 KiB, whatever was observed.

    tensor: its name, for errors.
    counts: int64 [bins]. count: their sum. largest: the exact maximum of |x|, 0.0 before the first value.
    """

    def __init__(self, tensor: str) -> None:
        self.tensor = tensor
        self.counts: NDArray[np.int64] = np.zeros(_BINS, np.int64)
        self.largest = 0.0

    @property
    def count(self) -> int:
        """Values observed."""
        return int(self.counts.sum())

    def observe(self, values: NDArray[Any]) -> None:
        """Count |values|, a float array of any shape (empty ones too); the array is not kept.

        Raises CalibrationError, and counts nothing, if a value is NaN, infinite, or beyond float32.
        """
        with np.errstate(over="ignore"):
            flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        counts = np.zeros(_BINS, np.int64)
        for start in range(0, flat.size, _CHUNK):
            bits = flat[start : start + _CHUNK].view(np.uint32) & np.uint32(0x7FFFFFFF)
            found = np.bincount(bits >> _DROPPED_BITS, minlength=_BINS)
            if found.size > _BINS:
                raise not_finite(self.tensor, values)
            counts += found
            self.largest = max(self.largest, float(bits.max().view(np.float32)))
        self.counts += counts

    def merge(self, other: RunningHistogram) -> None:
        """Add what another histogram of the same tensor observed."""
        self.counts += other.counts
        self.largest = max(self.largest, other.largest)

    def occupied(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """(lower edges, upper edges, counts) of the bins that hold a value, ascending, each float64 [occupied].

        The first may be the bin of zeros (and of magnitudes below 2**-133): its lower edge is 0.
        """
        bins = np.flatnonzero(self.counts)
        return bin_edges()[bins], bin_edges()[bins + 1], self.counts[bins].astype(np.float64)


@cache
def bin_edges() -> NDArray[np.float64]:
    """The lower edges of all bins and the end of the last, float64 [bins + 1], ascending from 0."""
    edges = (np.arange(_BINS, dtype=np.uint32) << np.uint32(_DROPPED_BITS)).view(np.float32).astype(np.float64)
    edges = np.append(edges, 2.0**128)
    edges.flags.writeable = False
    return edges


def not_finite(tensor: str, values: NDArray[Any]) -> CalibrationError:
    """The error for activations that hold NaN or infinity (or what float32 cannot hold)."""
    with np.errstate(over="ignore"):
        narrow = np.asarray(values, np.float32)
    bad = int(narrow.size - np.isfinite(narrow).sum())
    kind = "NaN" if np.isnan(narrow).any() else "infinity"
    return CalibrationError(
        f"activation {tensor!r} holds {kind} ({bad} of {narrow.size} values); the float model itself overflows on "
        "these conversations: check its checkpoint, or calibrate in float32"
    )
