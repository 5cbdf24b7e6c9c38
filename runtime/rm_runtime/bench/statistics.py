"""Latencies -> percentiles."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank, as MLPerf LoadGen takes it: the smallest value that `percent` % of all values do not exceed."""
    if not values or not 0 < percent <= 100:
        raise ValueError(f"no percentile {percent} of {len(values)} values")
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def median(values: Sequence[float]) -> float:
    """The middle value; of an even number the lower one, which was measured."""
    return percentile(values, 50)
