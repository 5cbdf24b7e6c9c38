"""The Open Inference Protocol v2 (KServe, Triton) over REST: its JSON, with tensors in it or as bytes behind it.

Source: kserve/open-inference-protocol, inference_rest.md. What a model takes and gives is inference.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rm_runtime.errors import RequestError
from rm_runtime.serving.call import Call, fields_of
from rm_runtime.serving.endpoints import inference
from rm_runtime.serving.endpoints.binary_tensors import BinaryReply
from rm_runtime.serving.endpoints.tensors import bytes_tensor, datatype_of, named, refuse_datatype, shaped, to_raw


def server_metadata() -> dict[str, Any]:
    """The body of GET /v2."""
    return inference.server_metadata("binary_tensor_data")


def infer(document: Any, call: Call) -> Any:
    """The body of POST /v2/models/{model}/infer -> its response, a BinaryReply where the client asks for bytes."""
    fields = fields_of(document)
    if not isinstance(fields.get("id"), str | None):
        raise RequestError('"id" must be a text')
    inputs = named((tensor["name"], _array(tensor)) for tensor in _tensors(fields, "inputs"))
    asked = [] if fields.get("outputs") is None else _tensors(fields, "outputs")
    outputs = inference.infer(inputs, [tensor["name"] for tensor in asked], call)
    by_default = _parameters(fields).get("binary_data_output") is True
    as_bytes = {tensor["name"]: _parameters(tensor).get("binary_data", by_default) is True for tensor in asked}
    tensors = []
    contents = []
    for name, array in outputs.items():
        tensor = {"name": name, "datatype": datatype_of(array), "shape": list(array.shape)}
        if as_bytes.get(name, by_default):
            contents.append(to_raw(array))
            tensors.append({**tensor, "parameters": {"binary_data_size": len(contents[-1])}})
        else:
            tensors.append({**tensor, "data": _listed(array)})
    reply = {"model_name": call.model_name, "model_version": inference.MODEL_VERSION, "outputs": tensors}
    if fields.get("id") is not None:
        reply["id"] = fields["id"]
    return BinaryReply(reply, b"".join(contents)) if contents else reply


def _tensors(fields: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Tensors, each with a name."""
    tensors = fields.get(key)
    if not isinstance(tensors, list):
        raise RequestError(f'"{key}" must be an array of tensors')
    for tensor in tensors:
        if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
            raise RequestError(f'"{key}" must be an array of objects with a name')
        inference.check_parameters(tensor["name"], _parameters(tensor))
    return tensors


def _parameters(fields: dict[str, Any]) -> dict[str, Any]:
    parameters = fields.get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def _array(tensor: dict[str, Any]) -> NDArray[Any]:
    values = tensor.get("data")
    if not isinstance(values, np.ndarray):  # as which bytes behind the JSON were read
        if not isinstance(values, list):
            raise RequestError(f"the data of {tensor['name']} must be an array")
        values = _values(tensor["name"], tensor.get("datatype"), list(_flat(values)))
    return shaped(tensor["name"], values, tensor.get("shape"))


def _flat(values: list[Any]) -> Iterator[Any]:
    """data may be nested or flat."""
    for value in values:
        if isinstance(value, list):
            yield from value
        else:
            yield value


def _values(name: str, datatype: object, values: list[Any]) -> NDArray[Any]:
    """JSON values as what the datatype says. A lone surrogate stays one, for the row's reader to refuse."""
    if datatype not in ("INT64", "BYTES"):
        raise refuse_datatype(name, datatype)
    if any(type(value) is not (int if datatype == "INT64" else str) for value in values):
        raise RequestError(f"{name} holds values that are no {datatype}")
    if datatype == "BYTES":
        return bytes_tensor([value.encode("utf-8", "surrogatepass") for value in values])
    try:
        return np.array(values, np.int64)
    except OverflowError:
        raise RequestError(f"{name} holds values that are no INT64: they have more than 64 bits") from None


def _listed(array: NDArray[Any]) -> list[Any]:
    values = array.ravel().tolist()
    return [value.decode("utf-8") for value in values] if array.dtype.kind == "O" else values
