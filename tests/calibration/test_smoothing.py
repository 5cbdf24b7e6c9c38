"""Smoothing: exact in float, as SmoothQuant says, and chosen by the error it leaves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from rm_calibration.smoothing import (
    LARGEST_EXPONENT,
    RowSample,
    grouped_query_channels,
    input_channel_max,
    search_smoothing,
    smoothing_exponents,
    smoothing_factors,
    source_exponents,
)

Matrix = NDArray[np.float32]
CHANNELS = 64

maxima = hnp.arrays(np.float32, CHANNELS, elements=st.floats(0, 2.0**20, width=32))


def rows_with_outliers(width: float, size: int = 200) -> Matrix:
    rows = np.random.default_rng(0).standard_normal((size, CHANNELS)).astype(np.float32)
    rows[:, [3, 40]] *= np.float32(width)
    return rows


def weight(outputs: int, seed: int = 1) -> Matrix:
    return (np.random.default_rng(seed).standard_normal((CHANNELS, outputs)) * 0.02).astype(np.float32)


def channel_max(rows: Matrix) -> Matrix:
    return np.asarray(np.abs(rows).max(axis=0))


@given(maxima, maxima, st.floats(0, 1))
def test_exponents_are_small_and_dead_channels_are_left_alone(activation: Matrix, read: Matrix, alpha: float) -> None:
    exponents = smoothing_exponents(activation, read, alpha)
    assert exponents.dtype == np.int8
    assert np.abs(exponents.astype(int)).max() <= LARGEST_EXPONENT
    assert (exponents[(activation == 0) | (read == 0)] == 0).all()
    assert alpha != 0 or not exponents.any()


def test_factors_are_those_of_the_paper_up_to_rounding_and_a_common_factor() -> None:
    random = np.random.default_rng(7)
    activation, read = np.exp(random.normal(0, 2, (2, CHANNELS))).astype(np.float32)
    paper = activation**0.7 / read**0.3
    ratio = smoothing_factors(smoothing_exponents(activation, read, 0.7)) / paper
    assert ratio.max() / ratio.min() <= 2.0001
    assert np.median(smoothing_exponents(activation, read, 0.7)) == 0


@given(
    hnp.arrays(np.int8, CHANNELS, elements=st.integers(-12, 12)),
    hnp.arrays(np.float32, CHANNELS, elements=st.floats(2.0**-60, 2.0**60, width=32)),
)
def test_folding_loses_no_bit(exponents: NDArray[np.int8], values: Matrix) -> None:
    factors = smoothing_factors(exponents)
    np.testing.assert_array_equal(values / factors * factors, values)
    np.testing.assert_array_equal(np.log2(factors), exponents)


def test_a_smoothed_product_is_the_same_product_to_the_bit() -> None:
    rows, read = rows_with_outliers(100, size=5), weight(7)
    factors = smoothing_factors(smoothing_exponents(channel_max(rows), input_channel_max([read]), 0.6))
    products = [(x[:, :, None] * w[None]) for x, w in ((rows, read), (rows / factors, read * factors[:, None]))]
    np.testing.assert_array_equal(products[0], products[1])


@pytest.mark.parametrize("rule", ["minmax", "percentile", "mse"])
def test_outlier_channels_are_smoothed_and_the_error_falls(rule: str) -> None:
    rows = rows_with_outliers(80)
    chosen = search_smoothing(rows, channel_max(rows), [weight(48), weight(16, seed=2)], rule)
    assert chosen.alpha > 0
    assert chosen.error < 0.1 * chosen.unsmoothed_error
    assert (chosen.exponents[[3, 40]] > np.delete(chosen.exponents, [3, 40]).max()).all()


def test_without_outliers_hardly_anything_is_gained_and_nothing_lost() -> None:
    rows = rows_with_outliers(1)
    chosen = search_smoothing(rows, channel_max(rows), [weight(48)])
    assert 0.7 * chosen.unsmoothed_error < chosen.error <= chosen.unsmoothed_error


def test_the_search_reports_the_error_that_int8_arithmetic_has() -> None:
    rows, read = rows_with_outliers(80), weight(48)
    chosen = search_smoothing(rows, channel_max(rows), [read], "minmax")
    factors = smoothing_factors(chosen.exponents)
    scale = np.abs(rows / factors).max() / 127
    scales = np.abs(read * factors[:, None]).max(axis=0) / 127
    stored = np.rint(rows / factors / scale) @ np.rint(read * factors[:, None] / scales)
    error = np.square(stored * scale * scales - rows @ read).sum() / np.square(rows @ read).sum()
    assert chosen.error == pytest.approx(error, rel=0.05)  # the weights are clipped there, and not here


def test_only_the_given_alphas_are_tried_and_zero_means_none() -> None:
    rows = rows_with_outliers(80)
    none = search_smoothing(rows, channel_max(rows), [weight(8)], alphas=[0.0])
    assert (none.alpha, none.error) == (0.0, none.unsmoothed_error)
    assert not none.exponents.any()
    assert search_smoothing(rows, channel_max(rows), [weight(8)], alphas=[0.5]).alpha == 0.5
    with pytest.raises(ValueError, match="no alpha"):
        search_smoothing(rows, channel_max(rows), [weight(8)], alphas=[])


def test_a_dead_activation_is_not_smoothed() -> None:
    rows = np.zeros((4, CHANNELS), np.float32)
    chosen = search_smoothing(rows, channel_max(rows), [weight(8)])
    assert (chosen.alpha, chosen.error) == (0.0, 0.0)


def test_a_wide_weight_is_judged_by_a_sample_of_its_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, read = rows_with_outliers(80), weight(400)
    whole = search_smoothing(rows, channel_max(rows), [read])
    monkeypatch.setattr("rm_calibration.smoothing._COLUMNS", 50)
    sampled = search_smoothing(rows, channel_max(rows), [read])
    assert sampled.alpha == pytest.approx(whole.alpha, abs=0.2)
    assert sampled.error == pytest.approx(whole.error, rel=0.2)


def test_query_heads_of_one_value_head_share_their_factors() -> None:
    """o_proj's input is softmax(...) V, each value head repeated: v / s and s * o_proj must meet the same s."""
    tied = grouped_query_channels(num_heads=8, num_kv_heads=2, head_dim=8)
    np.testing.assert_array_equal(tied.reshape(8, 8)[:, 0] // 8, [0, 0, 0, 0, 1, 1, 1, 1])
    random = np.random.default_rng(3)
    values = random.standard_normal((5, 16)).astype(np.float32) * np.where(np.arange(16) == 4, 50, 1)
    exponents = smoothing_exponents(channel_max(values[:, tied]), input_channel_max([weight(8)]), 0.5, tied)
    upstream = source_exponents(exponents, tied)
    assert upstream.shape == (16,)
    np.testing.assert_array_equal(upstream[tied], exponents)
    assert upstream[4] == upstream.max() > 0


@given(st.lists(st.integers(1, 9), max_size=20), st.integers(2, 9))
def test_a_row_sample_is_even_bounded_and_blind_to_batching(batches: list[int], limit: int) -> None:
    rows = np.arange(sum(batches) + 1, dtype=np.float32)[:, None]
    whole, pieces = RowSample(limit), RowSample(limit)
    whole.observe(rows)
    for end, size in zip(np.cumsum([*batches, 1]), [*batches, 1], strict=True):
        pieces.observe(rows[end - size : end])
    kept = whole.rows()
    np.testing.assert_array_equal(kept, pieces.rows())
    assert limit // 2 <= len(kept) <= limit or len(kept) == len(rows)
    assert len(set(np.diff(kept[:, 0]))) <= 1


def test_a_row_sample_keeps_copies_of_any_shape() -> None:
    batch = np.ones((2, 3, 4), np.float16)
    sample = RowSample()
    sample.observe(batch)
    batch[:] = 0
    assert sample.rows().dtype == np.float32
    np.testing.assert_array_equal(sample.rows(), np.ones((6, 4)))
