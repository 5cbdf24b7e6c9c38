"""The Open Inference Protocol v2 (KServe, Triton) over REST.

Source: kserve/open-inference-protocol, inference_rest.md. A model takes either `chats`, BYTES [n], each the JSON of a
/v1/score request, and gives `replies`, BYTES [n], and where every reply has one `score`, FP32 [n]; or `input_ids` and
`attention_mask`, INT64 [n, sequence], and gives the graph's own outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rm_runtime.errors import RequestError, ScoringError, UnscorableError, raise_if_asked
from rm_runtime.json_requests import parse_json, to_json
from rm_runtime.serving.call import Call, fields_of
from rm_runtime.serving.endpoints.native import replies_to
from rm_runtime.serving.service import ServedModel
from rm_runtime.serving.sizes import check_rows

_VERSION = "1"
_DATATYPES = {"float32": "FP32", "int64": "INT64"}


def server_metadata() -> dict[str, Any]:
    """The body of GET /v2."""
    return {"name": "rm-runtime", "version": version("rm-export"), "extensions": []}


def model_metadata(served: ServedModel) -> dict[str, Any]:
    """The body of GET /v2/models/{model}."""
    manifest = served.model.bundle.manifest
    outputs = [(record.name, _DATATYPES[record.dtype], [-1, *record.shape[1:]]) for record in manifest.outputs]
    ids = [(name, "INT64", [-1, -1]) for name in ("input_ids", "attention_mask")]
    return {
        "name": served.name,
        "versions": [_VERSION],
        "platform": f"rm_runtime_{served.model.engine.name}",
        "inputs": [_described(*tensor) for tensor in (("chats", "BYTES", [-1]), *ids)],
        "outputs": [_described(*tensor) for tensor in (("replies", "BYTES", [-1]), *outputs)],
    }


def infer(document: Any, call: Call) -> Any:
    """The body of POST /v2/models/{model}/infer -> its response."""
    fields = fields_of(document)
    inputs = _inputs(fields)
    model = call.model()
    if set(inputs) == {"chats"}:
        outputs = _chat_outputs(inputs["chats"], model, call)
    elif "input_ids" in inputs and set(inputs) <= {"input_ids", "attention_mask"}:
        outputs = _id_outputs(inputs, model, call)
    else:
        raise RequestError(f"the inputs are {', '.join(inputs) or 'none'}; send chats, or input_ids and attention_mask")
    wanted = _wanted(fields, outputs)
    reply = {"model_name": call.model_name, "model_version": _VERSION, "outputs": [outputs[name] for name in wanted]}
    return {**reply, "id": fields["id"]} if isinstance(fields.get("id"), str) else reply


def _described(name: str, datatype: str, shape: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape}


def _inputs(fields: dict[str, Any]) -> dict[str, dict[str, Any]]:
    tensors = fields.get("inputs")
    if not isinstance(tensors, list):
        raise RequestError('"inputs" must be an array of tensors')
    inputs = {}
    for tensor in tensors:
        if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
            raise RequestError("an input is an object with name, shape, datatype and data")
        inputs[tensor["name"]] = tensor
    return inputs


def _values(tensor: dict[str, Any], datatype: str, kind: type, dimensions: int) -> tuple[list[int], list[Any]]:
    """A tensor's shape and its values in row-major order; data may be nested or flat."""
    name, shape = tensor["name"], tensor.get("shape")
    if tensor.get("datatype") != datatype:
        raise RequestError(f"{name} has the datatype {tensor.get('datatype')!r}, it must be {datatype}")
    counts = shape if isinstance(shape, list) else []
    if len(counts) != dimensions or any(type(count) is not int or count < 0 for count in counts):
        raise RequestError(f"{name} must have a shape of {dimensions} numbers")
    values = list(_flat(tensor.get("data")))
    if len(values) != math.prod(counts):
        raise RequestError(f"{name} has {len(values)} values, its shape {counts} needs {math.prod(counts)}")
    if any(type(value) is not kind for value in values):
        raise RequestError(f"{name} holds values that are no {datatype}")
    return counts, values


def _flat(values: Any) -> Iterator[Any]:
    for value in values if isinstance(values, list) else []:
        if isinstance(value, list):
            yield from value
        else:
            yield value


def _chat_outputs(tensor: dict[str, Any], model: Any, call: Call) -> dict[str, dict[str, Any]]:
    _, texts = _values(tensor, "BYTES", str, 1)
    check_rows(len(texts), call.limits)
    documents = [_document(text) for text in texts]
    read = [document for document in documents if not isinstance(document, RequestError)]
    asked = iter(replies_to(read, model, call, lambda request: None))
    replies = [document if isinstance(document, RequestError) else next(asked) for document in documents]
    raise_if_asked(replies, "raise")
    answered = [reply for reply in replies if isinstance(reply, dict)]
    outputs = {"replies": _output("replies", "BYTES", [len(answered)], [to_json(reply) for reply in answered])}
    if all("score" in reply for reply in answered):
        outputs["score"] = _output("score", "FP32", [len(answered)], [reply["score"] for reply in answered])
    return outputs


def _document(text: str) -> Any:
    try:
        return parse_json(text.encode("utf-8"))
    except UnicodeEncodeError:
        return RequestError("it holds a lone surrogate; send valid Unicode")
    except RequestError as error:
        return error


def _id_outputs(inputs: dict[str, dict[str, Any]], model: Any, call: Call) -> dict[str, dict[str, Any]]:
    shape, values = _values(inputs["input_ids"], "INT64", int, 2)
    check_rows(shape[0], call.limits)
    known = model.bundle.tokenizer().get_vocab_size()
    if any(not 0 <= value < known for value in values):
        raise RequestError(f"input_ids holds an id that the tokenizer has not; they are 0 to {known - 1}")
    ids = np.array(values, np.int64).reshape(shape)
    mask = np.ones_like(ids)
    if "attention_mask" in inputs:
        of_mask, values = _values(inputs["attention_mask"], "INT64", int, 2)
        if of_mask != shape or not set(values) <= {0, 1}:
            raise RequestError(f"attention_mask must be of zeros and ones in the shape of input_ids, {shape}")
        mask = np.array(values, np.int64).reshape(shape)
    rows = [_row(number, row, of_row) for number, (row, of_row) in enumerate(zip(ids, mask, strict=True))]
    longest = model.bundle.manifest.prompt.max_length
    if any(len(row) > longest for row in rows):
        raise RequestError(f"a row has more than {longest} ids, the most this model reads")
    outputs = model.engine.run_rows(rows)
    lost = {row for array in outputs.values() for row in np.flatnonzero(np.isnan(array.reshape(len(rows), -1)).any(1))}
    if lost:
        reason = UnscorableError("the model gave no number for it; it lacks the tokens that this family reads from")
        raise ScoringError({int(row): reason for row in lost}, [None] * len(rows))
    return {name: _output(name, "FP32", list(array.shape), array.ravel().tolist()) for name, array in outputs.items()}


def _row(number: int, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row without its padding."""
    count = int(mask.sum())
    if not mask[:count].all():
        raise RequestError(f"row {number} is not padded on the right")
    if not count:
        raise RequestError(f"row {number} has no token")
    return ids[:count]


def _output(name: str, datatype: str, shape: list[int], values: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": values}


def _wanted(fields: dict[str, Any], outputs: dict[str, Any]) -> list[str]:
    """Names of the outputs that are asked for, all of them unless the request says."""
    asked = fields.get("outputs") or []
    if not isinstance(asked, list) or not all(isinstance(output, dict) for output in asked):
        raise RequestError('"outputs" must be an array of objects with a name')
    names = [str(output.get("name")) for output in asked] or list(outputs)
    for name in names:
        if name not in outputs:
            raise RequestError(f"no output {name!r} here; there is {', '.join(outputs)}")
    return names
