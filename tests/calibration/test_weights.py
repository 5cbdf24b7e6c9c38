"""Quantised weights: within half a step, clipped as well as brute force does, laid out as ONNX reads them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from rm_calibration import weights
from rm_calibration.errors import CalibrationError
from rm_calibration.weights import channel_scales, clip_ratios, dequantise, quantise_blockwise, quantise_weight

matrices = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=20),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


def heavy_tailed(inputs: int, outputs: int) -> NDArray[np.float32]:
    return (np.random.default_rng(5).standard_t(4, (inputs, outputs)) * 0.02).astype(np.float32)


def squared_errors(weight: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float64]:
    stored = np.clip(np.rint(weight / scales), -127, 127) * scales
    return np.asarray(((weight - stored).astype(np.float64) ** 2).sum(axis=0))


@given(matrices)
def test_without_a_clip_no_weight_moves_by_more_than_half_a_step(weight: NDArray[np.float32]) -> None:
    quantised = quantise_weight(weight, clip="none")
    assert quantised.values.dtype == np.int8
    assert np.abs(quantised.values.astype(int)).max() <= 127
    assert (np.abs(dequantise(quantised) - weight) <= quantised.scales * np.float32(0.50001)).all()


@given(matrices)
def test_each_channel_is_quantised_as_if_it_were_alone(weight: NDArray[np.float32]) -> None:
    whole = quantise_weight(weight)
    for channel in range(weight.shape[1]):
        alone = quantise_weight(weight[:, channel : channel + 1])
        np.testing.assert_array_equal(whole.values[:, channel], alone.values[:, 0])
        assert whole.scales[channel] == alone.scales[0]


def test_the_clip_is_as_good_as_brute_force() -> None:
    weight = heavy_tailed(2000, 24)
    largest = np.abs(weight).max(axis=0)
    tried = [squared_errors(weight, largest * np.float32(ratio) / 127) for ratio in np.arange(1, 0.49, -0.01)]
    chosen = squared_errors(weight, channel_scales(weight, clip_ratios(weight)))
    assert (chosen <= np.min(tried, axis=0) * 1.005).all()  # a histogram bin is 1/16 of a step
    assert chosen.sum() < 0.99 * tried[0].sum()


def test_a_lone_outlier_is_not_clipped_away() -> None:
    weight = np.random.default_rng(0).standard_normal((500, 1)).astype(np.float32)
    weight[7] = 400
    assert clip_ratios(weight)[0] >= 0.99


def test_a_channel_of_zeros_gets_the_scale_one() -> None:
    weight = heavy_tailed(16, 3)
    weight[:, 1] = 0
    quantised = quantise_weight(weight)
    assert quantised.scales[1] == 1
    assert (quantised.values[:, 1] == 0).all()
    assert clip_ratios(weight)[1] == 1


def test_subnormal_weights_give_a_normal_scale() -> None:
    assert quantise_weight(np.full((4, 2), 1e-44, np.float32)).scales.min() == np.finfo(np.float32).tiny


def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = heavy_tailed(70, 30)
    whole, blocks = quantise_weight(weight), quantise_blockwise(weight, 4, 32)
    monkeypatch.setattr(weights, "_STRIP", 100)
    for before, after in ((whole, quantise_weight(weight)), (blocks, quantise_blockwise(weight, 4, 32))):
        np.testing.assert_array_equal(before.values, after.values)
        np.testing.assert_array_equal(before.scales, after.scales)


def test_a_transposed_view_is_quantised_like_its_copy() -> None:
    view = heavy_tailed(30, 70).T
    np.testing.assert_array_equal(quantise_weight(view).values, quantise_weight(view.copy()).values)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_damaged_weight_is_refused_by_its_name_and_channel(bad: float) -> None:
    weight = heavy_tailed(8, 4)
    weight[3, 2] = bad
    with pytest.raises(CalibrationError, match=r"'q_proj' holds (nan|inf) in output channel 2"):
        quantise_weight(weight, tensor="q_proj")
    with pytest.raises(CalibrationError, match="output channel 2"):
        quantise_blockwise(weight, 8, 4)


def test_only_matrices_and_known_rules_are_quantised() -> None:
    with pytest.raises(CalibrationError, match=r"'bias' has shape \[4\]"):
        quantise_weight(np.ones(4, np.float32), tensor="bias")
    with pytest.raises(CalibrationError, match=r"shape \[0, 4\]"):
        quantise_weight(np.ones((0, 4), np.float32))
    with pytest.raises(CalibrationError, match="'kl'; choose one of mse, none"):
        quantise_weight(np.ones((4, 4), np.float32), clip="kl")


@given(matrices, st.sampled_from([8, 4]), st.integers(1, 24))
def test_blocks_have_a_scale_each_and_bound_the_error(weight: NDArray[np.float32], bits: int, block: int) -> None:
    quantised = quantise_blockwise(weight, bits, block)
    levels = 127 if bits == 8 else 7
    assert quantised.scales.shape == (-(-len(weight) // block), weight.shape[1])
    assert np.abs(quantised.values.astype(int)).max() <= levels
    scale_of_row = np.repeat(quantised.scales, block, axis=0)[: len(weight)]
    error = np.abs(dequantise(quantised, block) - weight)
    clipped = 0.0 if bits == 8 else 0.4 / 0.6 * levels  # at least 0.6 of the largest weight is kept
    assert (error <= scale_of_row * np.float32(max(0.50001, clipped * 1.00001))).all()


def test_the_clip_of_int4_blocks_pays() -> None:
    weight = heavy_tailed(1024, 16)
    amax = np.abs(weight.reshape(-1, 32, 16)).max(axis=1)
    plain = weights.QuantisedWeight(
        np.rint(weight / np.repeat(amax / 7, 32, axis=0)).astype(np.int8), (amax / 7).astype(np.float32)
    )
    before, after = (
        float(((dequantise(quantised, 32) - weight) ** 2).sum())
        for quantised in (plain, quantise_blockwise(weight, 4, 32))
    )
    assert after < 0.97 * before


@pytest.mark.parametrize("factor", [2.0**-80, 2.0**100])
def test_the_range_of_a_weight_does_not_change_its_integers(factor: float) -> None:
    weight = heavy_tailed(64, 8)
    for quantise in (quantise_weight, lambda each: quantise_blockwise(each, 4, 32)):
        np.testing.assert_array_equal(quantise(weight * np.float32(factor)).values, quantise(weight).values)


def test_blocks_are_laid_out_as_dequantize_linear_reads_them() -> None:
    """ONNX: y[i, j] = x[i, j] * scale[i // block_size, j] for axis 0."""
    quantised = quantise_blockwise(heavy_tailed(10, 3), 8, 4)
    expected = [[quantised.values[i, j] * quantised.scales[i // 4, j] for j in range(3)] for i in range(10)]
    np.testing.assert_array_equal(dequantise(quantised, 4), np.array(expected, np.float32))


def test_other_bits_or_an_empty_block_are_a_mistake() -> None:
    for bits, block in ((2, 32), (8, 0)):
        with pytest.raises(ValueError, match="bits are 8 or 4"):
            quantise_blockwise(np.ones((4, 4), np.float32), bits, block)


@pytest.mark.parametrize("bits", [8, 4])
def test_integers_of_blocks_are_made_for_the_scales_that_are_stored(bits: int) -> None:
    weight, levels = heavy_tailed(64, 8), 2 ** (bits - 1) - 1
    packed = quantise_blockwise(weight, bits, 32, stored=lambda scales: np.exp2(np.ceil(np.log2(scales))))
    assert (np.log2(packed.scales) % 1 == 0).all()
    expected = np.rint(weight / np.repeat(packed.scales, 32, axis=0))
    np.testing.assert_array_equal(packed.values, np.clip(expected, -levels, levels))
