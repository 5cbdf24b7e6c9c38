"""From which |x| on an activation is clipped: one small class a rule, over running statistics only.

Every rule watches a tensor piece by piece and gives its `amax`, the value that int8's largest level 127 stands
for (scale = amax / 127); none keeps an activation.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rm_calibration.errors import CalibrationError
from rm_calibration.histograms import RunningHistogram, not_finite
from rm_calibration.symmetric import INT8_LEVELS, integrated_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OCTAVES, _STEPS = 10, 32
"""Searched clips are largest * 2**(-k / 32), down to 2**-10 of the largest magnitude: steps of 2 %."""


class Observer(Protocol):
    """One rule watching one tensor."""

    def observe(self, values: NDArray[Any]) -> None:
        """Watch a float array of any shape. Raises CalibrationError naming the tensor for NaN or infinity."""

    def amax(self) -> float:
        """The clip: larger magnitudes saturate. 0.0 if only zeros came; CalibrationError if nothing came."""


class MinMax:
    """Clip nothing: the largest magnitude seen."""

    def __init__(self, tensor: str) -> None:
        self._maximum = ChannelMax(tensor)

    def observe(self, values: NDArray[Any]) -> None:
        self._maximum.observe(np.reshape(values, (-1, 1)))

    def amax(self) -> float:
        return float(self._maximum.maxima()[0])


class HistogramObserver(abc.ABC):
    """Base of the rules that read a histogram. Several may share one: give it to each, observe through one."""

    def __init__(self, tensor: str, histogram: RunningHistogram | None = None) -> None:
        self.histogram = RunningHistogram(tensor) if histogram is None else histogram

    def observe(self, values: NDArray[Any]) -> None:
        self.histogram.observe(values)

    def amax(self) -> float:
        if not self.histogram.count:
            raise _never_observed(self.histogram.tensor)
        return self._clip() if self.histogram.largest else 0.0

    @abc.abstractmethod
    def _clip(self) -> float:
        """The clip of a histogram that holds a value other than zero."""


class Percentile(HistogramObserver):
    """Clip so that `percent` of all values, zeros included, lie within (linear inside a bin)."""

    def __init__(self, tensor: str, histogram: RunningHistogram | None = None, percent: float = 99.99) -> None:
        super().__init__(tensor, histogram)
        if not 0 < percent <= 100:
            raise ValueError(f"percent must be in (0, 100], not {percent}")
        self.percent = percent

    def _clip(self) -> float:
        lower, upper, counts = self.histogram.occupied()
        within = np.cumsum(counts)
        wanted = within[-1] * (self.percent / 100)
        at = int(np.searchsorted(within, wanted))
        share = 1 - (within[at] - wanted) / counts[at]
        if lower[at] == 0:  # nearly all are zeros: clip nothing rather than everything
            return self.histogram.largest
        return min(float(lower[at] + share * (upper[at] - lower[at])), self.histogram.largest)


class Entropy(HistogramObserver):
    """Clip where quantising loses least information: minimal KL(P || Q) (Migacz, "8-bit Inference with TensorRT",
    GTC 2017; onnxruntime.quantization's "entropy" is the same rule).

    P is the distribution of |x| with everything beyond the clip moved into the last level. Q is what 128 levels
    keep of the part within the clip: the mass of each level, spread evenly over its occupied bins. The originals
    use 2,048 linear bins, so a low clip is judged on few bins and looks better than it is; here the bins are as
    fine for every clip, and masses spread by bin width, which is the same where the widths are equal. By the
    chain rule KL splits into sums over bins and over levels, and cumulative sums give those for all clips at once.
    """

    def _clip(self) -> float:
        occupied = self.histogram.occupied()
        lower, upper, counts = (column[occupied[0] > 0] for column in occupied)  # zeros are exact for every clip
        clips = _candidate_clips(self.histogram.largest)
        edges = clips[:, None] * ((np.arange(INT8_LEVELS + 2) - 0.5) / INT8_LEVELS).clip(0)  # [clips, levels + 1]
        edges[:, -1] = clips
        bins = np.searchsorted((lower + upper) / 2, edges)
        mass, width, surprise = (
            np.diff(_cumulative(values)[bins], axis=1)
            for values in (counts, upper - lower, counts * np.log(counts / (upper - lower)))
        )
        total, kept = counts.sum(), mass.sum(axis=1)
        # Inside the levels: how uneven P is there.
        with np.errstate(divide="ignore", invalid="ignore"):
            uneven = np.where(mass > 0, surprise - mass * np.log(mass / width), 0.0)
            saturated = mass[:, -1] + (total - kept)
            inside = uneven[:, :-1].sum(axis=1) + uneven[:, -1] * saturated / np.maximum(mass[:, -1], 1)
            # Between the levels: only the last one's mass differs, and Q is normalised by what was kept.
            moved = np.where(saturated > 0, saturated * np.log(saturated / mass[:, -1]), 0.0)
            divergence = (inside + moved) / total - np.log(total / kept)
        divergence = np.where(np.isnan(divergence), np.inf, divergence)
        return float(clips[np.argmin(divergence)])


class MSE(HistogramObserver):
    """Clip where the expected squared error of quantising is least: rounding below it against saturation above.

    Values are taken as uniform inside their bin, and the error is integrated over it, so that it is right both
    for bins much narrower and about as wide as a quantisation step.
    """

    def _clip(self) -> float:
        lower, upper, counts = self.histogram.occupied()
        density = counts / (upper - lower)
        clips = _candidate_clips(self.histogram.largest)
        errors = []
        for step in clips / INT8_LEVELS:
            below, above = (integrated_error(edges, step, INT8_LEVELS) for edges in (lower, upper))
            errors.append(float(density @ (above - below)))
        return float(clips[np.argmin(errors)])


class ChannelMax:
    """Running maximum of |x| of each channel, the last axis."""

    def __init__(self, tensor: str) -> None:
        self.tensor = tensor
        self._maxima: NDArray[np.float32] | None = None

    def observe(self, values: NDArray[Any]) -> None:
        """values: float [..., channels]. Raises CalibrationError for NaN, infinity, or another number of channels."""
        rows = np.reshape(values, (-1, values.shape[-1]))
        if not rows.size:
            return
        with np.errstate(over="ignore"):
            largest = np.maximum(rows.max(axis=0), -rows.min(axis=0)).astype(np.float32)
        if not np.isfinite(largest).all():
            raise not_finite(self.tensor, values)
        if self._maxima is None:
            self._maxima = largest
        elif self._maxima.shape != largest.shape:
            raise CalibrationError(
                f"activation {self.tensor!r} came with {largest.size} channels after {self._maxima.size}; "
                "one name must stand for one tensor"
            )
        else:
            np.maximum(self._maxima, largest, out=self._maxima)

    def maxima(self) -> NDArray[np.float32]:
        """max |x| [channels]; a dead channel has 0.0. Raises CalibrationError if nothing was observed."""
        if self._maxima is None:
            raise _never_observed(self.tensor)
        return self._maxima.copy()


def observer_named(rule: str, tensor: str) -> Observer:
    """A fresh observer of that tensor: rule is "minmax", "percentile" (99.99), "entropy" or "mse"."""
    rules: dict[str, type[MinMax | Percentile | Entropy | MSE]] = {
        "minmax": MinMax,
        "percentile": Percentile,
        "entropy": Entropy,
        "mse": MSE,
    }
    if rule not in rules:
        raise CalibrationError(f"there is no observer {rule!r}; choose one of {', '.join(rules)}")
    return rules[rule](tensor)


def _candidate_clips(largest: float) -> NDArray[np.float64]:
    """Descending from `largest`, so that the first of equals clips least."""
    clips: NDArray[np.float64] = largest * 2.0 ** (-np.arange(_OCTAVES * _STEPS + 1) / _STEPS)
    return clips


def _cumulative(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n] -> [n + 1]: sums of the first 0, 1, ..., n values."""
    return np.concatenate([[0.0], np.cumsum(values)])


def _never_observed(tensor: str) -> CalibrationError:
    return CalibrationError(f"activation {tensor!r} was never observed; the calibration conversations hold no token")
