"""The value gates: rounding passes them, and no wrong packing does."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from rm_calibration.errors import CalibrationError
from rm_calibration.fidelity import FidelityCheck, check_fidelity, weight_fidelity
from rm_calibration.weights import dequantise, quantise_blockwise, quantise_weight

Matrix = NDArray[np.float32]
WEIGHT: Matrix = (np.random.default_rng(2).standard_normal((192, 192)) * 0.02).astype(np.float32)


def channels_of_other_sizes() -> Matrix:
    return WEIGHT * np.float32(2.0) ** np.random.default_rng(1).integers(-8, 8, 192).astype(np.float32)


def one_wide_input() -> Matrix:
    return WEIGHT * np.where(np.arange(192) == 5, 60, 1).astype(np.float32)[:, None]


@pytest.mark.parametrize(
    "weight", [WEIGHT, channels_of_other_sizes(), one_wide_input()], ids=["even", "uneven", "one wide input"]
)
def test_correctly_packed_weights_pass(weight: Matrix) -> None:
    check_fidelity("w", weight, dequantise(quantise_weight(weight)))
    check_fidelity("w", weight, dequantise(quantise_blockwise(weight, 8, 32), 32))
    check_fidelity("w", weight, dequantise(quantise_blockwise(weight, 4, 32), 32), numbers="int4")
    check_fidelity("w", weight, dequantise(quantise_blockwise(weight, 4, 128), 128), numbers="int4")


def swap_first_channels(packed: Matrix) -> Matrix:
    return packed[:, [1, 0, *range(2, packed.shape[1])]]


WRONG: dict[str, Callable[[Matrix], Matrix]] = {
    "transposed": lambda packed: packed.T,
    "inputs permuted": lambda packed: packed[np.random.default_rng(0).permutation(192)],
    "outputs permuted": lambda packed: packed[:, np.random.default_rng(0).permutation(192)],
    "heads interleaved": lambda packed: packed.reshape(192, 4, 48).swapaxes(1, 2).reshape(192, 192),
    "two channels swapped": swap_first_channels,
    "shifted by one row": lambda packed: np.roll(packed, 1, axis=0),
    "sign lost": np.abs,
    "scaled": lambda packed: packed * np.float32(1.1),
    "scale of another layer": lambda packed: packed * np.random.default_rng(0).uniform(0.2, 5, 192).astype(np.float32),
    "nibbles swapped": lambda packed: packed.reshape(-1, 2)[:, ::-1].reshape(192, 192),
    "zeros": np.zeros_like,
    "one channel zero": lambda packed: packed * (np.arange(192) != 9).astype(np.float32),
    "one channel of opposite sign": lambda packed: packed * np.where(np.arange(192) == 9, -1, 1).astype(np.float32),
    "nan": lambda packed: np.full_like(packed, np.nan),
    "one nan": lambda packed: np.where(np.arange(192) == 9, np.nan, packed).astype(np.float32),
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("weight", [WEIGHT, channels_of_other_sizes()], ids=["even", "uneven"])
@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_packing_fails_by_the_name_of_its_tensor(mistake: str, weight: Matrix, bits: int) -> None:
    quantised = quantise_blockwise(weight, bits, 32)
    with pytest.raises(CalibrationError, match=rf"the int{bits} copy of weight 'layers\.7\.up_proj'") as caught:
        check_fidelity("layers.7.up_proj", weight, WRONG[mistake](dequantise(quantised, 32)), f"int{bits}")
    assert "\n" not in str(caught.value)


def test_another_shape_fails_with_both_shapes() -> None:
    with pytest.raises(CalibrationError, match=r"has shape \[192, 191\] instead of \[192, 192\]"):
        check_fidelity("w", WEIGHT, WEIGHT[:, 1:])
    with pytest.raises(ValueError, match="two equal matrices"):
        weight_fidelity(WEIGHT, WEIGHT[1:])


def test_a_weight_is_itself() -> None:
    fidelity = weight_fidelity(WEIGHT, WEIGHT)
    assert fidelity.correlation == pytest.approx(1, abs=1e-12)
    assert fidelity.norm_ratio == 1


def test_the_worst_channel_is_named() -> None:
    assert weight_fidelity(WEIGHT, swap_first_channels(WEIGHT)).channel in (0, 1)
    spoilt = WEIGHT.copy()
    spoilt[:, 17] = spoilt[::-1, 17]
    with pytest.raises(CalibrationError, match="in output channel 17"):
        check_fidelity("w", spoilt, WEIGHT)


def test_zeros_are_faithful_to_zeros_and_to_nothing_else() -> None:
    zeros, ones = np.zeros((4, 4), np.float32), np.ones((4, 4), np.float32)
    check_fidelity("w", zeros, dequantise(quantise_weight(zeros)))
    for one, other in ((zeros, ones), (ones, zeros)):
        with pytest.raises(CalibrationError):
            check_fidelity("w", one, other)


def test_tiny_weights_are_compared_too() -> None:
    tiny = (WEIGHT * np.float32(1e-30)).astype(np.float32)
    check_fidelity("w", tiny, dequantise(quantise_weight(tiny)))
    with pytest.raises(CalibrationError):
        check_fidelity("w", tiny, tiny.T)


def test_a_weight_that_comes_in_pieces_is_judged_as_a_whole() -> None:
    packed = dequantise(quantise_weight(WEIGHT))
    check = FidelityCheck("weight")
    for channels in (slice(0, 191), slice(191, 192)):
        check.add(WEIGHT[:, channels], packed[:, channels])
    assert check.result() == check_fidelity("weight", WEIGHT, packed)
