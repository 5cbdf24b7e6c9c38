"""SmoothQuant: move the width of an activation's outlier channels into the weights that read them.

X W = (X / s)(s W) for any factors s, one a channel. An activation has one int8 scale, so a channel far wider than
the others costs all of them their precision until s narrows it; a weight has a scale for each output channel and
can bear more (Xiao et al. 2023, "SmoothQuant", arXiv:2211.10438, equation 4). Here s is rounded to a power of two:
then dividing what makes X (a norm's weight, v_proj, up_proj) and multiplying what reads it are exact in every float
format, and the float model stays the same model to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rm_calibration.observers import observer_named
from rm_calibration.symmetric import INT8_LEVELS, scale_of
from rm_calibration.weights import dequantise, quantise_weight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

LARGEST_EXPONENT = 12
"""Factors lie in 2**-12 .. 2**12: enough for massive activations, and folded weights stay inside float16."""

ALPHAS = tuple(step / 10 for step in range(11))
"""0.0 is no smoothing at all; 1.0 makes all channels of the activation equally wide."""

_COLUMNS = 512
"""Output channels of each weight the search looks at: they have scales of their own, so a sample is unbiased."""


@dataclass(frozen=True)
class Smoothing:
    """What the search chose for one activation.

    exponents: int8 [in]; the activation is divided by 2**exponents. All 0 where alpha is 0.0.
    error, unsmoothed_error: mean over the weights of ||XW - Q(X/s)Q(sW)||**2 / ||XW||**2, with and without.
    """

    alpha: float
    exponents: NDArray[np.int8]
    error: float
    unsmoothed_error: float


def smoothing_exponents(
    activation_max: NDArray[np.float32],
    weight_max: NDArray[np.float32],
    alpha: float,
    tied: NDArray[np.intp] | None = None,
) -> NDArray[np.int8]:
    """round(log2(activation_max**alpha / weight_max**(1 - alpha))), int8 [in], shifted so that their median is 0.

    A factor common to all channels changes nothing but the range of the folded weights, hence the shift. Channels
    that are dead (a maximum of 0) keep the factor 1; alpha 0.0 gives all zeros.

    activation_max, weight_max: max |x| [in] of each input channel. tied: [in], channels with the same number must
    share a factor, because one channel upstream feeds them (see grouped_query_channels); the wider one decides.
    """
    exponents = np.zeros(activation_max.shape, np.int8)
    activation, weight = (_tied_max(maxima, tied) for maxima in (activation_max, weight_max))
    live = (activation > 0) & (weight > 0)
    if alpha == 0 or not live.any():
        return exponents
    wanted = np.rint(alpha * np.log2(activation[live]) - (1 - alpha) * np.log2(weight[live]))
    middle = np.sort(wanted)[wanted.size // 2]
    exponents[live] = np.clip(wanted - middle, -LARGEST_EXPONENT, LARGEST_EXPONENT).astype(np.int8)
    return exponents


def search_smoothing(
    rows: NDArray[np.float32],
    activation_max: NDArray[np.float32],
    weights: Sequence[NDArray[np.float32]],
    rule: str = "mse",
    tied: NDArray[np.intp] | None = None,
    alphas: Sequence[float] = ALPHAS,
) -> Smoothing:
    """The alpha whose int8 arithmetic is closest to the float product, tried on a sample; the smallest of equals.

    The error is measured, not modelled: the rows and up to 512 output channels of each weight are quantised as the
    engine will do it. With r rows that takes memory for about 4 * in * (r + 512) floats, and as many times
    2 * r * in * 512 flops as there are weights and alphas.

    rows [r, in]: the caller's sample of the activation before smoothing (see RowSample); a few hundred are enough.
    activation_max [in]: channel maxima over all rows ever seen. weights: all that read this activation (q, k, v;
    gate, up), each [in, out]. rule: which observer clips the smoothed activation; "minmax" clips at the maxima of
    all rows, the others judge the sample. tied: as in smoothing_exponents.
    """
    weight_max = input_channel_max(weights)
    sampled = [weight[:, :: -(-weight.shape[1] // _COLUMNS)] for weight in weights]
    products = [rows @ weight for weight in sampled]
    best: Smoothing | None = None
    unsmoothed = _relative_error(rows, activation_max, sampled, products, rule)
    for alpha in sorted(alphas):
        exponents = smoothing_exponents(activation_max, weight_max, alpha, tied)
        if exponents.any():
            factors = smoothing_factors(exponents)
            scaled = [weight * factors[:, None] for weight in sampled]
            error = _relative_error(rows / factors, activation_max / factors, scaled, products, rule)
        else:
            error = unsmoothed
        if best is None or error < best.error:
            best = Smoothing(alpha if exponents.any() else 0.0, exponents, error, unsmoothed)
    if best is None:
        raise ValueError("no alpha to try")
    return best


def smoothing_factors(exponents: NDArray[np.int8]) -> NDArray[np.float32]:
    """2**exponents [in], exactly. Divide the activation's producer by it, multiply the rows of its readers."""
    return np.ldexp(np.float32(1), exponents.astype(np.intc))


def input_channel_max(weights: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """max |w| [in] of each input channel over all `weights` [in, out]."""
    maxima = [np.maximum(weight.max(axis=1), -weight.min(axis=1)) for weight in weights]
    largest: NDArray[np.float32] = np.max(maxima, axis=0)
    return largest


def grouped_query_channels(num_heads: int, num_kv_heads: int, head_dim: int) -> NDArray[np.intp]:
    """For each input channel of o_proj, [num_heads * head_dim], the output channel of v_proj that feeds it.

    Query head h reads key/value head h // (num_heads / num_kv_heads), as transformers' repeat_kv.
    """
    heads = np.arange(num_heads) // (num_heads // num_kv_heads)
    channels: NDArray[np.intp] = (heads[:, None] * head_dim + np.arange(head_dim)).reshape(-1)
    return channels


def source_exponents(exponents: NDArray[np.int8], tied: NDArray[np.intp]) -> NDArray[np.int8]:
    """exponents [in] for the readers as [sources] for the producer: each source's channels share one."""
    producer = np.zeros(int(tied.max()) + 1, np.int8)
    producer[tied] = exponents
    return producer


class RowSample:
    """An even sample of an activation's rows in bounded memory: every n-th, n doubling whenever it is full.

    Deterministic for the same rows in the same order, whatever the batching. At most `limit` rows are kept.
    """

    def __init__(self, limit: int = 256) -> None:
        self._limit = limit
        self._stride = 1
        self._seen = 0
        self._kept: list[NDArray[np.float32]] = []

    def observe(self, values: NDArray[np.floating]) -> None:
        """values: [..., in]."""
        rows = values.reshape(-1, values.shape[-1])
        wanted = -(-self._seen // self._stride) * self._stride
        while wanted < self._seen + len(rows):
            if len(self._kept) == self._limit:
                self._kept = self._kept[::2]
                self._stride *= 2
            else:
                self._kept.append(rows[wanted - self._seen].astype(np.float32, copy=True))
                wanted += 1
            wanted = -(-wanted // self._stride) * self._stride
        self._seen += len(rows)

    def rows(self) -> NDArray[np.float32]:
        """The sample so far, [kept, in]; ValueError before the first row."""
        return np.stack(self._kept)


def _relative_error(
    rows: NDArray[np.float32],
    activation_max: NDArray[np.float32],
    weights: Sequence[NDArray[np.float32]],
    products: Sequence[NDArray[np.float32]],
    rule: str,
) -> float:
    """Mean over weights of ||product - Q(rows) Q(weight)||**2 / ||product||**2; a zero product counts as no error."""
    if rule == "minmax":
        amax = float(activation_max.max())
    else:
        observer = observer_named(rule, "the sampled rows")
        observer.observe(rows)
        amax = observer.amax()
    scale = np.float32(scale_of(amax))
    stored = np.clip(np.rint(rows / scale), -INT8_LEVELS, INT8_LEVELS) * scale
    errors = []
    for weight, product in zip(weights, products, strict=True):
        difference = stored @ dequantise(quantise_weight(weight)) - product
        energy = float(np.square(product, dtype=np.float64).sum())
        errors.append(float(np.square(difference, dtype=np.float64).sum()) / energy if energy else 0.0)
    return float(np.mean(errors))


def _tied_max(maxima: NDArray[np.float32], tied: NDArray[np.intp] | None) -> NDArray[np.float64]:
    if tied is None:
        return maxima.astype(np.float64)
    shared = np.zeros(int(tied.max()) + 1)
    np.maximum.at(shared, tied, maxima)
    widest: NDArray[np.float64] = shared[tied]
    return widest
