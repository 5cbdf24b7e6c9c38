"""Streamed tensors equal what numpy computes on whole arrays, whatever the block size."""

from __future__ import annotations

import io
import tracemalloc
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import save_file

from rm_export import tensors
from rm_export.checkpoint import read_tensors
from rm_export.errors import CheckpointError
from rm_export.tensors import (
    BLOCK_BYTES,
    BlockMapped,
    Computed,
    Mapped,
    StreamedTensor,
    Transposed,
    all_finite,
    cast,
    pick_rows,
    scaled,
    to_float32,
    transpose,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BF16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = [np.dtype(np.float32), np.dtype(np.float16), BF16, np.dtype(np.float64)]
SHAPES = [(), (1,), (7,), (5, 3), (4, 2, 3), (0,), (0, 3), (3, 0), (1, 50)]


@pytest.fixture(params=[1, 12, BLOCK_BYTES], autouse=True)
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks of one row, of some rows, and of everything."""
    monkeypatch.setattr(tensors, "BLOCK_BYTES", request.param)
    return int(request.param)


def values(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.random.default_rng(3).normal(scale=3, size=shape).astype(dtype)


def stored(folder: Path, array: np.ndarray) -> StreamedTensor:
    """The array as a tensor of a safetensors file, with neighbours on both sides."""
    around = np.full(5, 7, np.uint8)
    save_file({"a": around, "weight": array, "z": around}, folder / "model.safetensors")
    return read_tensors(folder)["weight"]


def written(tensor: StreamedTensor) -> bytes:
    file = io.BytesIO()
    tensor.tofile(file)
    return file.getvalue()


def assert_equal(tensor: StreamedTensor, expected: np.ndarray) -> None:
    """All ways to read a tensor give the same bits."""
    assert tensor.dims == expected.shape
    assert tensor.dtype == ir.DataType.from_numpy(expected.dtype)
    assert tensor.nbytes == expected.nbytes
    for found in (tensor.numpy(), tensor.numpy(), np.asarray(tensor)):
        assert isinstance(found, np.ndarray)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()
    assert written(tensor) == tensor.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", [*FLOATS, np.dtype(np.int64), np.dtype(np.bool_)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_stored_tensor_reads_back_bit_for_bit(tmp_path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    array = values(shape, dtype)
    assert_equal(stored(tmp_path, array), array)


def test_blocks_are_consecutive_rows_and_as_large_as_allowed(tmp_path: Path, block_bytes: int) -> None:
    array = values((10, 4), np.dtype(np.float16))
    pieces = list(stored(tmp_path, array).blocks())
    rows = min(10, max(1, block_bytes // 8))
    assert [len(piece) for piece in pieces[:-1]] == [rows] * (len(pieces) - 1)
    np.testing.assert_array_equal(np.concatenate(pieces), array)


@pytest.mark.parametrize("to", FLOATS[:3], ids=str)
@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_cast_rounds_as_numpy_does(tmp_path: Path, shape: tuple[int, ...], dtype: np.dtype, to: np.dtype) -> None:
    array = values(shape, dtype)
    expected = array.astype(np.float32).astype(to)
    assert_equal(cast(stored(tmp_path, array), ir.DataType.from_numpy(to)), expected)


def test_a_cast_rounds_half_to_even(tmp_path: Path) -> None:
    halves = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11], np.float32)
    base = stored(tmp_path, halves)
    brain = cast(base, ir.DataType.BFLOAT16).numpy().astype(np.float32)
    half = cast(base, ir.DataType.FLOAT16).numpy().astype(np.float32)
    np.testing.assert_array_equal(brain[:2], np.array([1, 1 + 2**-6], np.float32))
    np.testing.assert_array_equal(half[2:], np.array([1, 1 + 2**-9], np.float32))


def test_every_bfloat16_widens_to_the_float32_that_it_stands_for() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(BF16)
    np.testing.assert_array_equal(to_float32(every), every.astype(np.float32))
    widened = to_float32(np.array(0.375, BF16))
    assert isinstance(widened, np.ndarray)
    assert (widened.shape, widened.dtype, widened) == ((), np.float32, 0.375)


def test_a_cast_to_the_same_dtype_is_the_tensor_itself(tmp_path: Path) -> None:
    base = stored(tmp_path, values((2, 2), BF16))
    assert cast(base, ir.DataType.BFLOAT16) is base


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BF16], ids=str)
@pytest.mark.parametrize("beside", [1.0, np.inf, np.nan])
def test_a_value_beyond_float16_is_refused(tmp_path: Path, dtype: np.dtype, beside: float) -> None:
    tensor = cast(stored(tmp_path, np.array([[beside, -70144.0]], dtype)), ir.DataType.FLOAT16)
    with pytest.raises(CheckpointError, match=r"'weight' holds 70144, beyond float16's 65504; export with --bf16"):
        written(tensor)


def test_infinities_and_nan_that_are_stored_stay_what_they_are(tmp_path: Path) -> None:
    array = np.array([np.inf, -np.inf, np.nan, 65519.0], np.float32)
    found = cast(stored(tmp_path, array), ir.DataType.FLOAT16).numpy()
    np.testing.assert_array_equal(found, np.array([np.inf, -np.inf, np.nan, 65504.0], np.float16))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(5, 3), (1, 4), (0, 3), (3, 0), (70, 600)], ids=str)
def test_a_transpose_equals_numpy(tmp_path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    array = values(shape, dtype)
    assert_equal(transpose(stored(tmp_path, array)), np.ascontiguousarray(array.T))


def test_what_was_transposed_is_taken_back_without_holding_it(tmp_path: Path) -> None:
    array = values((5, 3), BF16)
    base, factors = stored(tmp_path, array), np.float32([1, 2, 4, 8, 16])
    assert transpose(transpose(base)) is base
    chain = scaled(cast(transpose(base), ir.DataType.FLOAT), factors, axis=-1)  # [3, 5]
    back = transpose(chain)
    assert not isinstance(back, Transposed)
    assert back.name == chain.name
    assert_equal(back, array.astype(np.float32) * factors[:, None])
    assert_equal(transpose(back), np.ascontiguousarray(array.astype(np.float32).T) * factors)


def test_a_function_of_the_blocks_sees_all_of_them_however_they_are_read(tmp_path: Path) -> None:
    array, ends = values((5, 3), np.dtype(np.float32)), []

    def negated(pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for piece in pieces:
            yield -piece
        ends.append("reached")

    tensor = BlockMapped(stored(tmp_path, array), negated, ir.DataType.FLOAT, (5, 3), "weight")
    tensor.numpy()
    assert ends == ["reached"]
    assert_equal(tensor, -array)


def test_only_a_matrix_is_transposed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"its shape is \[2, 2, 2\]"):
        transpose(stored(tmp_path, values((2, 2, 2), BF16)))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_value_that_is_not_finite_is_found(dtype: np.dtype) -> None:
    largest = ml_dtypes.finfo(dtype).max
    assert all_finite(np.array([[0, -0.0, largest], [1, -1, -largest]], dtype).T)
    for value in (np.inf, -np.inf, np.nan, -np.nan):
        assert not all_finite(np.array([0, value], dtype))
        assert not all_finite(np.array(value, dtype))


@pytest.mark.parametrize("indices", [[0], [8, 0, 3], [2, 2], [], list(range(9))], ids=str)
@pytest.mark.parametrize("shape", [(9,), (9, 4), (9, 2, 3)], ids=str)
def test_picked_rows_equal_numpy(tmp_path: Path, shape: tuple[int, ...], indices: list[int]) -> None:
    array = values(shape, BF16)
    assert_equal(pick_rows(stored(tmp_path, array), indices), array[np.array(indices, int)])


@pytest.mark.parametrize("index", [9, -1, 2**40])
def test_a_row_that_is_not_there_is_refused(tmp_path: Path, index: int) -> None:
    base = stored(tmp_path, values((9, 4), BF16))
    with pytest.raises(CheckpointError, match=rf"'weight' has 9 rows, so there is no row {index}"):
        pick_rows(base, [0, index])


def test_views_compose(tmp_path: Path) -> None:
    array = values((6, 4), BF16)
    negated = Mapped(stored(tmp_path, array), np.negative, ir.DataType.BFLOAT16)
    composed = transpose(cast(pick_rows(negated, [5, 1, 0]), ir.DataType.FLOAT16))
    expected = (-array)[[5, 1, 0]].astype(np.float32).astype(np.float16).T
    assert_equal(composed, np.ascontiguousarray(expected))


def test_a_computed_tensor_is_computed_anew_and_takes_its_dtype_and_shape() -> None:
    calls: list[int] = []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.arange(6)

    tensor = Computed(compute, ir.DataType.FLOAT16, (2, 3), "made")
    assert calls == []
    assert_equal(tensor, np.arange(6, dtype=np.float16).reshape(2, 3))
    assert len(calls) > 1


def test_memory_stays_at_a_few_blocks_while_a_large_tensor_is_cast_and_written(
    tmp_path: Path, block_bytes: int
) -> None:
    if block_bytes != BLOCK_BYTES:
        pytest.skip("the real block size is what is measured")
    base = stored(tmp_path, np.ones((64 * 1024, 1024), BF16))
    assert base.nbytes == 8 * BLOCK_BYTES

    def peak_of(write: object) -> int:
        tracemalloc.start()
        write()  # type: ignore[operator]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    with (tmp_path / "out").open("wb") as out:
        assert peak_of(lambda: base.tofile(out)) < 2.5 * BLOCK_BYTES
        # a block, twice that in float32, the result, and what is found infinite in it
        assert peak_of(lambda: cast(base, ir.DataType.FLOAT16).tofile(out)) < 6 * BLOCK_BYTES
    assert peak_of(base.numpy) < base.nbytes + 2.5 * BLOCK_BYTES
