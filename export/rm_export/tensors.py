"""Weights that are never whole in memory unless they must be.

A StreamedTensor is an onnx-ir tensor whose bytes come as consecutive blocks. The sources are ranges of
safetensors files; the views cast, transpose, pick rows or map values, one block at a time where the
arithmetic allows it. Peak memory of an export is therefore bounded by the largest tensor that has to be
transposed, not by the model.
"""

from __future__ import annotations

import abc
import os
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rm_export.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from io import FileIO
    from pathlib import Path

BLOCK_BYTES = 16 * 1024 * 1024
"""Size of the pieces in which large tensors are read and written."""

Array = NDArray[Any]

_FLOAT16_OVERFLOW = 65520  # from here on rounding to the nearest float16 gives infinity


class StreamedTensor(ir.LazyTensor):
    """An onnx-ir tensor given as blocks: consecutive C-order pieces along the first axis."""

    def __init__(self, dtype: ir.DataType, shape: Sequence[int], name: str) -> None:
        super().__init__(self._whole, dtype=dtype, shape=ir.Shape(shape), name=name)

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape as plain integers."""
        return tuple(dim for dim in self.shape if isinstance(dim, int))

    @abc.abstractmethod
    def blocks(self) -> Iterator[Array]:
        """Consecutive pieces along axis 0, each [rows, *dims[1:]]; a scalar is one piece of shape []."""

    def numpy(self) -> Array:
        """The whole tensor, in memory."""
        whole: Array | None = None
        start = 0
        for piece in self.blocks():
            if piece.shape == self.dims:
                whole = piece
                continue  # to the end: a stream may check what it gave
            if whole is None:
                whole = np.empty(self.dims, self.dtype.numpy())
            whole[start : start + len(piece)] = piece
            start += len(piece)
        return np.empty(self.dims, self.dtype.numpy()) if whole is None else whole

    def tofile(self, file: Any) -> None:
        """Append the little-endian bytes to an open binary file, block by block."""
        for piece in self.blocks():
            file.write(stored_bytes(piece))

    def _whole(self) -> ir.Tensor[Array]:
        return ir.Tensor(self.numpy(), dtype=self.dtype, name=self.name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.dtype}, {list(self.dims)})"


class FileTensor(StreamedTensor):
    """A byte range of a file, read on demand with plain reads (a memory map would count as resident)."""

    def __init__(self, path: Path, offset: int, dtype: ir.DataType, shape: Sequence[int], name: str) -> None:
        super().__init__(dtype, shape, name)
        self._path = path
        self._offset = offset

    def blocks(self) -> Iterator[Array]:
        element = self.dtype.numpy()
        dims = self.dims
        row_items = int(np.prod(dims[1:], dtype=np.int64)) if dims else 1
        row_bytes = row_items * element.itemsize
        rows_left = dims[0] if dims else 1
        rows_per_block = max(1, BLOCK_BYTES // max(1, row_bytes))
        with self._open() as file:
            file.seek(self._offset)
            while rows_left:
                rows = min(rows_left, rows_per_block)
                yield self._read(file, rows * row_items, element).reshape((rows, *dims[1:]) if dims else ())
                rows_left -= rows
            if self.nbytes:
                _forget_pages(file.fileno(), self._offset, self.nbytes)

    def _open(self) -> FileIO:
        try:
            return self._path.open("rb", buffering=0)
        except OSError as error:
            raise CheckpointError(f"{self._path} cannot be read: {error.strerror}") from None

    def _read(self, file: FileIO, items: int, element: np.dtype[Any]) -> Array:
        piece = np.empty(items, element)
        view = piece.view(np.uint8).data
        done = 0
        while done < len(view):
            got = file.readinto(view[done:])
            if not got:
                raise CheckpointError(
                    f"{self._path} ends inside tensor {self.name!r}; download or copy the checkpoint again"
                )
            done += got
        return piece


class Mapped(StreamedTensor):
    """A function of every value alone, applied block by block; shapes stay, the dtype may change."""

    def __init__(self, base: StreamedTensor, function: Callable[[Array], Array], dtype: ir.DataType) -> None:
        super().__init__(dtype, base.dims, str(base.name))
        self._base = base
        self._function = function

    def blocks(self) -> Iterator[Array]:
        for piece in self._base.blocks():
            yield self._function(piece)

    def transposed(self) -> StreamedTensor:
        """The same function of the transposed base: it knows nothing of places."""
        turned = Mapped(transpose(self._base), self._function, self.dtype)
        turned.name = self.name
        return turned


class BlockMapped(StreamedTensor):
    """What a function makes of the stream of another tensor's blocks."""

    def __init__(
        self,
        base: StreamedTensor,
        function: Callable[[Iterator[Array]], Iterator[Array]],
        dtype: ir.DataType,
        shape: Sequence[int],
        name: str,
    ) -> None:
        super().__init__(dtype, shape, name)
        self._base = base
        self._function = function

    def blocks(self) -> Iterator[Array]:
        yield from self._function(self._base.blocks())


class Computed(StreamedTensor):
    """The result of a function over whole tensors, computed anew at each use and then forgotten."""

    def __init__(self, compute: Callable[[], Array], dtype: ir.DataType, shape: Sequence[int], name: str) -> None:
        super().__init__(dtype, shape, name)
        self._compute = compute

    def blocks(self) -> Iterator[Array]:
        yield self._compute().astype(self.dtype.numpy(), copy=False).reshape(self.dims)


def cast(base: StreamedTensor, dtype: ir.DataType) -> StreamedTensor:
    """The same values in another float type, rounded to nearest even; refuses finite values that overflow."""
    if base.dtype == dtype:
        return base

    def convert(piece: Array) -> Array:
        wide = to_float32(piece)
        if dtype == ir.DataType.FLOAT:
            return wide
        with np.errstate(over="ignore"):
            narrow = wide.astype(dtype.numpy())
        if dtype == ir.DataType.FLOAT16 and np.isinf(narrow).any():
            largest = np.abs(wide[np.isfinite(wide)]).max(initial=0)
            if largest >= _FLOAT16_OVERFLOW:
                raise CheckpointError(
                    f"tensor {base.name!r} holds {largest:.6g}, beyond float16's 65504; export with --bf16"
                )
        return narrow

    return Mapped(base, convert, dtype)


class Transposed(StreamedTensor):
    """[rows, columns] -> [columns, rows]; holds the base in memory while it gives the result in strips."""

    _COLUMNS, _ROWS = 256, 64  # a tile that stays in cache while it is turned

    def __init__(self, base: StreamedTensor) -> None:
        rows, columns = base.dims
        super().__init__(base.dtype, (columns, rows), str(base.name))
        self._base = base

    def transposed(self) -> StreamedTensor:
        """The base itself."""
        return self._base

    def blocks(self) -> Iterator[Array]:
        source = self._base.numpy()
        bits = source.view(np.uint16) if source.dtype == ml_dtypes.bfloat16 else source  # numpy moves these faster
        for start in range(0, bits.shape[1], self._COLUMNS):
            strip = bits[:, start : start + self._COLUMNS]
            turned = np.empty((strip.shape[1], strip.shape[0]), bits.dtype)
            for row in range(0, strip.shape[0], self._ROWS):
                turned[:, row : row + self._ROWS] = strip[row : row + self._ROWS].T
            yield turned.view(source.dtype)


def transpose(base: StreamedTensor) -> StreamedTensor:
    """[rows, columns] -> [columns, rows]. Raises ValueError unless the tensor has two axes.

    What was transposed before is taken back instead, so that it is read block by block again.
    """
    if len(base.dims) != 2:
        raise ValueError(f"a matrix is needed, its shape is {list(base.dims)}")
    return base.transposed() if isinstance(base, (Mapped, Scaled, Transposed)) else Transposed(base)


def pick_rows(base: StreamedTensor, indices: Sequence[int]) -> StreamedTensor:
    """[n, ...] -> [len(indices), ...], one block at a time. Raises CheckpointError for a row it has not."""
    rows = base.dims[0]
    outside = [index for index in indices if not 0 <= index < rows]
    if outside:
        raise CheckpointError(f"tensor {base.name!r} has {rows} rows, so there is no row {outside[0]}")

    def pick() -> Array:
        picked = np.empty((len(indices), *base.dims[1:]), base.dtype.numpy())
        start = 0
        for piece in base.blocks():
            for place, index in enumerate(indices):
                if start <= index < start + len(piece):
                    picked[place] = piece[index - start]
            start += len(piece)
        return picked

    return Computed(pick, base.dtype, (len(indices), *base.dims[1:]), str(base.name))


def to_float32(piece: Array) -> NDArray[np.float32]:
    """Any float array as float32, exactly. bfloat16 widens by a shift, several times faster than astype."""
    if piece.dtype == ml_dtypes.bfloat16:
        bits = piece.view(np.uint16).astype(np.uint32)
        bits <<= 16  # in place, so that a scalar stays an array
        return bits.view(np.float32)
    return piece.astype(np.float32, copy=False)


def scaled(base: StreamedTensor, factors: NDArray[np.float32], axis: int) -> StreamedTensor:
    """base times factors [base.dims[axis]] along an axis (0: rows, -1: columns), in float32.

    Exact where the factors are powers of two. Raises ValueError if their number is not that of the axis.
    """
    if len(factors) != base.dims[axis]:
        raise ValueError(f"{len(factors)} factors for {base.dims[axis]} channels")
    return Scaled(base, factors, axis)


class Scaled(StreamedTensor):
    """What `scaled` returns."""

    def __init__(self, base: StreamedTensor, factors: NDArray[np.float32], axis: int) -> None:
        super().__init__(ir.DataType.FLOAT, base.dims, str(base.name))
        self._base, self._factors = base, factors
        self._by_row = axis % len(base.dims) == 0

    def transposed(self) -> StreamedTensor:
        """The transposed base, scaled along its other axis."""
        return Scaled(transpose(self._base), self._factors, -1 if self._by_row else 0)

    def blocks(self) -> Iterator[Array]:
        start = 0
        for piece in self._base.blocks():
            if self._by_row:
                rows = self._factors[start : start + len(piece)]
                yield to_float32(piece) * rows.reshape(-1, *[1] * (piece.ndim - 1))
            else:
                yield to_float32(piece) * self._factors
            start += len(piece)


def stored_bytes(piece: Array) -> memoryview:
    """A block as it lies in a file: little-endian; two int4 values a byte, the first in the low half."""
    flat = np.ascontiguousarray(piece).reshape(-1)
    if flat.dtype == ml_dtypes.int4:
        halves = np.append(flat, flat[:0] if flat.size % 2 == 0 else np.zeros(1, flat.dtype)).astype(np.uint8) & 0xF
        flat = halves[::2] | (halves[1::2] << 4)
    return flat.view(np.uint8).data


def all_finite(piece: Array) -> bool:
    """Whether a float array holds neither NaN nor infinity; 16-bit floats are tested by exponent bits."""
    exponents = {np.dtype(np.float16): 0x7C00, np.dtype(ml_dtypes.bfloat16): 0x7F80}.get(piece.dtype)
    if exponents is None:
        return bool(np.isfinite(piece).all())
    bits = np.ascontiguousarray(piece).view(np.uint16)
    return not bool(((bits & exponents) == exponents).any())


def _forget_pages(descriptor: int, offset: int, length: int) -> None:
    """Tell the kernel that these bytes are not needed again: an export shall not flush the page cache."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
