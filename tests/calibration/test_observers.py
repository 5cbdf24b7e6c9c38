"""Observers: exact bookkeeping for any values in any order, and clips that are as good as brute force finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from rm_calibration.errors import CalibrationError
from rm_calibration.histograms import RunningHistogram, bin_edges
from rm_calibration.observers import MSE, ChannelMax, Entropy, MinMax, Percentile, observer_named
from rm_calibration.symmetric import integrated_error, scale_of, scales_of

RULES = ("minmax", "percentile", "entropy", "mse")
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
arrays = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=20), elements=finite)


def normal(size: int) -> NDArray[np.float32]:
    return np.random.default_rng(3).standard_normal(size).astype(np.float32)


def squared_error(values: NDArray[np.float32], amax: float) -> float:
    scale = amax / 127
    return float(np.mean((values - np.clip(np.rint(values / scale), -127, 127) * scale) ** 2, dtype=np.float64))


def clip_of(rule: str, values: NDArray[np.float32]) -> float:
    observer = observer_named(rule, "x")
    observer.observe(values)
    return observer.amax()


@given(arrays)
def test_every_value_is_counted_in_the_bin_that_holds_its_magnitude(values: NDArray[np.float32]) -> None:
    histogram = RunningHistogram("x")
    histogram.observe(values)
    assert histogram.count == values.size
    assert histogram.largest == np.abs(values).max()
    expected = np.searchsorted(bin_edges(), np.abs(values).reshape(-1).astype(np.float64), side="right") - 1
    np.testing.assert_array_equal(histogram.counts, np.bincount(expected, minlength=histogram.counts.size))


@given(arrays, arrays)
def test_neither_order_nor_batching_nor_layout_changes_a_histogram(
    one: NDArray[np.float32], other: NDArray[np.float32]
) -> None:
    together, backwards, merged, second = (RunningHistogram("x") for _ in range(4))
    together.observe(np.concatenate([one.reshape(-1), other.reshape(-1)]))
    for values in (other.T, one[::-1]):
        backwards.observe(values)
    merged.observe(one)
    second.observe(other)
    merged.merge(second)
    for histogram in (backwards, merged):
        np.testing.assert_array_equal(histogram.counts, together.counts)
        assert histogram.largest == together.largest


def test_bins_are_less_than_one_percent_wide() -> None:
    edges = bin_edges()[128:]  # the first 128 are subnormal
    assert (edges[1:] / edges[:-1]).max() <= 1 + 1 / 128


def test_more_values_than_are_counted_at_once_are_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rm_calibration.histograms._CHUNK", 7)
    histogram = RunningHistogram("x")
    histogram.observe(np.arange(100, dtype=np.float32))
    assert (histogram.count, histogram.largest) == (100, 99.0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_by_the_name_of_the_tensor(rule: str, bad: float) -> None:
    observer = observer_named(rule, "layers.3.mlp.up")
    observer.observe(np.ones(4, np.float32))
    with pytest.raises(
        CalibrationError, match=r"'layers\.3\.mlp\.up' holds (NaN|infinity) \(1 of 3 values\)"
    ) as caught:
        observer.observe(np.array([1, bad, 100], np.float32))
    assert "\n" not in str(caught.value)
    assert observer.amax() == pytest.approx(1, rel=0.01)


def test_float64_beyond_float32_counts_as_infinity() -> None:
    for observer in (MinMax("x"), MSE("x")):
        with pytest.raises(CalibrationError, match="infinity"):
            observer.observe(np.array([1e39]))


@pytest.mark.parametrize("rule", RULES)
def test_a_tensor_of_zeros_is_clipped_at_zero_and_scaled_by_one(rule: str) -> None:
    assert clip_of(rule, np.zeros((3, 4), np.float32)) == 0.0
    assert scale_of(0.0) == 1.0


@pytest.mark.parametrize("rule", RULES)
def test_without_a_value_there_is_no_clip(rule: str) -> None:
    observer = observer_named(rule, "x")
    observer.observe(np.zeros((0, 4), np.float32))
    with pytest.raises(CalibrationError, match="'x' was never observed"):
        observer.amax()


@given(st.floats(0, float(np.finfo(np.float32).max), width=32))
def test_scales_are_normal_float32_and_hold_the_clip(amax: float) -> None:
    scale = scale_of(amax)
    assert scale >= np.finfo(np.float32).tiny
    assert np.float32(scale) == scale
    assert np.isclose(scale * 127, amax, rtol=1e-6) or amax < 127 * float(np.finfo(np.float32).tiny)
    np.testing.assert_array_equal(scales_of(np.array([amax, 0], np.float32))[1:], [1])


@pytest.mark.parametrize("rule", RULES)
@settings(deadline=None, max_examples=50)
@given(values=arrays)
def test_a_clip_is_a_positive_number_that_is_no_larger_than_the_largest_value(
    rule: str, values: NDArray[np.float32]
) -> None:
    largest = float(np.abs(values).max())
    clip = clip_of(rule, values)
    assert (0 < clip <= largest) if largest else clip == 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("factor", [2.0**-100, 2.0**60])
def test_clips_scale_with_the_tensor(rule: str, factor: float) -> None:
    values = normal(5000)
    assert clip_of(rule, values * np.float32(factor)) == pytest.approx(clip_of(rule, values) * factor, rel=1e-12)


def test_minmax_clips_nothing() -> None:
    assert clip_of("minmax", np.array([[3, -7.25], [0, 5]], np.float32)) == 7.25


@pytest.mark.parametrize("percent", [50, 99, 99.99, 100])
def test_a_percentile_is_right_within_a_bin(percent: float) -> None:
    values = normal(100_000)
    observer = Percentile("x", percent=percent)
    observer.observe(values)
    assert observer.amax() == pytest.approx(np.percentile(np.abs(values), percent), rel=0.008)


def test_a_percentile_that_would_clip_everything_clips_nothing() -> None:
    values = np.zeros(100_000, np.float32)
    values[0] = 3
    assert clip_of("percentile", values) == 3


def test_a_percentile_outside_0_to_100_is_refused() -> None:
    with pytest.raises(ValueError, match="percent"):
        Percentile("x", percent=101)


def student_t_with_two_degrees(size: int) -> NDArray[np.float32]:
    """Its quantiles: the distribution without the accidents of a sample."""
    share = (np.arange(size) + 0.5) / size
    return ((2 * share - 1) / np.sqrt(2 * share * (1 - share))).astype(np.float32)


SHAPES = {
    "normal": normal(200_000),
    "laplace": np.random.default_rng(1).laplace(size=200_000).astype(np.float32),
    "heavier tails": student_t_with_two_degrees(200_000),
    "heavy tails": np.random.default_rng(1).standard_t(4, 200_000).astype(np.float32),
    "uniform": np.random.default_rng(1).uniform(-1, 1, 200_000).astype(np.float32),
    "half zeros": np.maximum(normal(200_000), 0),
    "outlier channel": normal(200_000) * np.where(np.arange(200_000) % 100 == 0, 50, 1).astype(np.float32),
    "massive first token": np.append(normal(200_000), np.float32(1000)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_mse_is_as_good_as_brute_force(shape: str) -> None:
    values = SHAPES[shape]
    largest = float(np.abs(values).max())
    best = min(squared_error(values, largest * 2 ** (-k / 8)) for k in range(60))
    assert squared_error(values, clip_of("mse", values)) <= 1.01 * best


def tensorrt_clip(values: NDArray[np.float32]) -> float:
    """The published algorithm as it stands: 2,048 linear bins, 128 levels, every candidate by itself."""
    counts, edges = np.histogram(np.abs(values), 2048)
    best, clip = np.inf, float(edges[-1])
    for kept in range(128, 2049, 8):
        p, within = counts[:kept].astype(float), counts[:kept].astype(float)
        p[-1] += counts[kept:].sum()
        level = np.arange(kept) * 128 // kept
        mass, occupied = np.bincount(level, within), np.bincount(level, within > 0)
        q = np.where(within > 0, (mass / np.maximum(occupied, 1))[level], 0)
        p, q = p / p.sum(), q / q.sum()
        if (q[p > 0] > 0).all():
            divergence = float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())
            if divergence < best:
                best, clip = divergence, float(edges[kept])
    return clip


@pytest.mark.parametrize("shape", ["uniform", "outlier channel", "heavier tails"])
def test_entropy_clips_where_tensorrts_algorithm_does(shape: str) -> None:
    """Where that has a clear minimum: for light tails it is flat, and decided by which tail bins happen to be empty."""
    assert clip_of("entropy", SHAPES[shape]) == pytest.approx(tensorrt_clip(SHAPES[shape]), rel=0.2)


def test_entropy_is_not_stopped_by_a_massive_activation() -> None:
    """Where 2,048 linear bins cannot see the bulk at all, and clip nothing."""
    values = SHAPES["massive first token"]
    assert clip_of("entropy", values) == pytest.approx(clip_of("entropy", SHAPES["normal"]), rel=0.1)
    assert tensorrt_clip(values) > 900


def test_zeros_do_not_move_the_entropy_clip() -> None:
    values = normal(20_000)
    assert clip_of("entropy", np.append(values, np.zeros(100_000, np.float32))) == clip_of("entropy", values)


def test_rules_may_share_one_histogram() -> None:
    histogram = RunningHistogram("x")
    histogram.observe(normal(10_000))
    for rule in (Percentile, Entropy, MSE):
        alone = rule("x")
        alone.observe(normal(10_000))
        assert rule("x", histogram).amax() == alone.amax()


def test_the_integrated_error_is_the_integral() -> None:
    points = np.linspace(0, 12, 120_001)
    stored = np.minimum(np.floor(points / 0.7 + 0.5), 7) * 0.7
    numeric = np.cumsum((points - stored) ** 2) * (points[1] - points[0])
    np.testing.assert_allclose(integrated_error(points, 0.7, 7), numeric, atol=1e-2)


@given(hnp.arrays(np.float32, (6, 3), elements=finite))
def test_channel_maxima_are_those_of_all_rows(values: NDArray[np.float32]) -> None:
    observer = ChannelMax("x")
    observer.observe(values[:2])
    observer.observe(values[2:].reshape(2, 2, 3))
    np.testing.assert_array_equal(observer.maxima(), np.abs(values).max(axis=0))


def test_channel_maxima_refuse_nan_and_another_width_by_the_name_of_the_tensor() -> None:
    observer = ChannelMax("attn")
    with pytest.raises(CalibrationError, match="'attn' was never observed"):
        observer.maxima()
    observer.observe(np.ones((2, 3), np.float32))
    with pytest.raises(CalibrationError, match="'attn' came with 2 channels after 3"):
        observer.observe(np.ones((2, 2), np.float32))
    with pytest.raises(CalibrationError, match="'attn' holds NaN"):
        observer.observe(np.full((2, 3), np.nan, np.float32))
    np.testing.assert_array_equal(observer.maxima(), [1, 1, 1])


def test_an_unknown_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CalibrationError, match="'median'; choose one of minmax, percentile, entropy, mse"):
        observer_named("median", "x")
