"""Tensors sent as bytes behind the JSON of an Open Inference Protocol request or answer, as tritonclient does.

Source: Triton's protocol/extension_binary_data.md. The header Inference-Header-Content-Length says where the JSON ends;
a tensor's parameter binary_data_size how many of the bytes behind it are its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rm_runtime.json_requests import parse_json, to_json
from rm_runtime.serving.endpoints.tensors import from_raw
from rm_runtime.serving.errors import BadBodyError

HEADER = "inference-header-content-length"


@dataclass(frozen=True)
class BinaryReply:
    """An answer with tensors behind its JSON. tensors: their bytes, in the order in which the document has them."""

    document: dict[str, Any]
    tensors: bytes

    def encoded(self) -> tuple[bytes, dict[str, str]]:
        """The body and its headers. Raises ValueError for a number that is not finite."""
        head = to_json(self.document).encode("utf-8")
        return head + self.tensors, {HEADER: str(len(head)), "content-type": "application/octet-stream"}


def read_tensors(body: bytes, header_length: str) -> Any:
    """The body's JSON, every binary input's values as an array in its "data". Raises BadBodyError, RequestError."""
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
        tensor["data"] = from_raw(str(tensor.get("name")), tensor.get("datatype"), body[start : start + size])
        start += size
    if start != len(body):
        raise BadBodyError(f"{len(body) - start} bytes behind the JSON belong to no input")
    return document
