"""Tensors of the Open Inference Protocol as arrays, and as the bytes that Triton's clients send.

An INT64 tensor is int64, FP32 is float32, BYTES is objects, each of them bytes. As bytes (Triton's
protocol/extension_binary_data.md) numbers are little-endian, and each element of BYTES stands behind its length in four
bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rm_runtime.errors import RequestError

Tensors = dict[str, NDArray[Any]]

_MAX_SIZE = 2**31
"""Arrays of no elements may have greater sizes, which numpy refuses."""

_DATATYPES = {"i": "INT64", "f": "FP32", "O": "BYTES"}


def datatype_of(array: NDArray[Any]) -> str:
    """The protocol's name of an array's type."""
    return _DATATYPES[array.dtype.kind]


def bytes_tensor(elements: Sequence[bytes]) -> NDArray[Any]:
    """A BYTES tensor [n]."""
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array


def named(arrays: Iterable[tuple[str, NDArray[Any]]]) -> Tensors:
    """A request's inputs by name. Raises RequestError for a name that is there twice."""
    inputs: Tensors = {}
    for name, array in arrays:
        if name in inputs:
            raise RequestError(f"the input {name!r} is there twice")
        inputs[name] = array
    return inputs


def shaped(name: str, values: NDArray[Any], shape: object) -> NDArray[Any]:
    """Values in row-major order in a shape that a client wrote. Raises RequestError if they do not fit."""
    sizes = shape if isinstance(shape, list) else []
    if len(sizes) not in (1, 2) or any(type(size) is not int or not 0 <= size < _MAX_SIZE for size in sizes):
        raise RequestError(f"{name} must have a shape of one or two sizes, each below {_MAX_SIZE}")
    if len(values) != math.prod(sizes):
        raise RequestError(f"{name} has {len(values)} values, its shape {sizes} needs {math.prod(sizes)}")
    return values.reshape(sizes)


def refuse_datatype(name: str, datatype: object) -> RequestError:
    """The error of an input in a datatype that no model here takes."""
    return RequestError(f"{name} has the datatype {datatype!r}, it must be INT64 or BYTES")


def from_raw(name: str, datatype: object, raw: bytes) -> NDArray[Any]:
    """Values in row-major order, from their bytes. Raises RequestError if those are no tensor of that datatype."""
    if datatype == "INT64":
        if len(raw) % 8:
            raise RequestError(f"{name} has {len(raw)} bytes, which are no tensor of INT64")
        return np.frombuffer(raw, "<i8")
    if datatype != "BYTES":
        raise refuse_datatype(name, datatype)
    elements = []
    start = 0
    while start < len(raw):
        first = start + 4
        start = first + int.from_bytes(raw[start:first], "little")
        if start > len(raw):
            raise RequestError(f"{name} has an element that is longer than its tensor")
        elements.append(raw[first:start])
    return bytes_tensor(elements)


def to_raw(array: NDArray[Any]) -> bytes:
    """An array's bytes."""
    if array.dtype.kind == "O":
        return b"".join(len(element).to_bytes(4, "little") + element for element in array.ravel())
    return array.astype(array.dtype.newbyteorder("<")).tobytes()
