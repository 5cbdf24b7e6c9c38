"""Tensors sent as bytes behind the JSON of an Open Inference Protocol request, as tritonclient does by itself.

Source: Triton's protocol/extension_binary_data.md. The header Inference-Header-Content-Length says where the JSON ends;
an input's parameter binary_data_size how many of the bytes behind it are its own. BYTES elements are length-prefixed
with four bytes, numbers are little-endian. Outputs are always JSON, which the clients read as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rm_runtime.json_requests import parse_json
from rm_runtime.serving.errors import BadBodyError

HEADER = "inference-header-content-length"


def read_tensors(body: bytes, header_length: str) -> Any:
    """The body's JSON with every binary input's elements in its "data". Raises BadBodyError, RequestError."""
    if not header_length.isdecimal() or int(header_length) > len(body):
        raise BadBodyError(f"Inference-Header-Content-Length is {header_length!r}, the body has {len(body)} bytes")
    start = int(header_length)
    document = parse_json(body[:start])
    inputs = document.get("inputs") if isinstance(document, dict) else None
    for tensor in inputs if isinstance(inputs, list) else []:
        parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            continue
        if type(size) is not int or not 0 <= size <= len(body) - start:
            raise BadBodyError(f"binary_data_size is {size!r}, {len(body) - start} bytes are left")
        tensor["data"] = _elements(body[start : start + size], tensor.get("datatype"))
        start += size
    if start != len(body):
        raise BadBodyError(f"{len(body) - start} bytes behind the JSON belong to no input")
    return document


def _elements(of_tensor: bytes, datatype: object) -> list[Any]:
    if datatype == "INT64" and len(of_tensor) % 8 == 0:
        numbers: list[Any] = np.frombuffer(of_tensor, "<i8").tolist()
        return numbers
    if datatype != "BYTES":
        raise BadBodyError(f"{len(of_tensor)} bytes are no tensor of {datatype!r}; send INT64 or BYTES")
    texts = []
    start = 0
    while start < len(of_tensor):
        end = start + 4 + int.from_bytes(of_tensor[start : start + 4], "little")
        if end > len(of_tensor):
            raise BadBodyError("a BYTES element is longer than its tensor")
        try:
            texts.append(of_tensor[start + 4 : end].decode("utf-8"))
        except UnicodeDecodeError:
            raise BadBodyError(f"element {len(texts)} of a BYTES tensor is not UTF-8") from None
        start = end
    return texts
