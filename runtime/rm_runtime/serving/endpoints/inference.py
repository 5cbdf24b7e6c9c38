"""The Open Inference Protocol v2, whatever it travels over: what a model takes and gives, as arrays by name.

A model takes either `chats`, BYTES [n] or [n, 1], each the JSON of a /v1/score request, and gives `replies`, BYTES, and
where every reply has one `score`, FP32, both in the shape of the chats; or `input_ids` and `attention_mask`, INT64
[n, sequence], and gives the graph's own outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rm_runtime.errors import RequestError, ScoringError, UnscorableError, raise_if_asked
from rm_runtime.json_requests import parse_json, to_json
from rm_runtime.serving.call import Call
from rm_runtime.serving.endpoints.native import replies_to
from rm_runtime.serving.endpoints.tensors import Tensors, bytes_tensor, datatype_of
from rm_runtime.serving.service import ServedModel
from rm_runtime.serving.sizes import check_rows

MODEL_VERSION = "1"
_DATATYPES = {"float32": "FP32", "int64": "INT64"}
_UNSUPPORTED = ("shared_memory_region", "classification")
"""Parameters of a tensor that change where it is or what it holds: ignored, they would give a client wrong numbers."""


def server_metadata(*extensions: str) -> dict[str, Any]:
    """What the server is. extensions: of the protocol, by Triton's names."""
    return {"name": "rm-runtime", "version": version("rm-export"), "extensions": list(extensions)}


def model_metadata(served: ServedModel) -> dict[str, Any]:
    """What a model takes and gives; -1 in a shape is any size."""
    manifest = served.model.bundle.manifest
    outputs = [(record.name, _DATATYPES[record.dtype], [-1, *record.shape[1:]]) for record in manifest.outputs]
    ids = [(name, "INT64", [-1, -1]) for name in ("input_ids", "attention_mask")]
    return {
        "name": served.name,
        "versions": [MODEL_VERSION],
        "platform": f"rm_runtime_{served.model.engine.name}",
        "inputs": [_described(*tensor) for tensor in (("chats", "BYTES", [-1]), *ids)],
        "outputs": [_described(*tensor) for tensor in (("replies", "BYTES", [-1]), *outputs)],
    }


def infer(inputs: Mapping[str, NDArray[Any]], wanted: Sequence[str], call: Call) -> Tensors:
    """Inputs by name -> outputs by name: those that are wanted, or all of them.

    Raises RequestError, ScoringError that names rows, TooLargeError, and what waiting for the model's queue raises.
    """
    model = call.model()
    if set(inputs) == {"chats"}:
        columns = inputs["chats"].shape[1:] == (1,)  # as Triton has it, where a row must have a dimension
        chats = _checked("chats", inputs, "BYTES", 2 if columns else 1)
        outputs = {name: array.reshape(chats.shape) for name, array in _of_chats(chats.ravel(), model, call).items()}
    elif "input_ids" in inputs and set(inputs) <= {"input_ids", "attention_mask"}:
        outputs = _of_ids(inputs, model, call)
    else:
        raise RequestError(f"the inputs are {', '.join(inputs) or 'none'}; send chats, or input_ids and attention_mask")
    for name in wanted:
        if name not in outputs:
            raise RequestError(f"no output {name!r} here; there is {', '.join(outputs)}")
    return {name: outputs[name] for name in wanted or outputs}


def check_parameters(name: str, parameters: Iterable[str]) -> None:
    """Raises RequestError if a tensor's parameters ask what is not done here."""
    for parameter in parameters:
        if parameter in _UNSUPPORTED:
            raise RequestError(f"{name} has the parameter {parameter}, which this server does not support")


def _described(name: str, datatype: str, shape: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape}


def _checked(name: str, inputs: Mapping[str, NDArray[Any]], datatype: str, dimensions: int) -> NDArray[Any]:
    array = inputs[name]
    if datatype_of(array) != datatype:
        raise RequestError(f"{name} has the datatype {datatype_of(array)}, it must be {datatype}")
    if array.ndim != dimensions:
        raise RequestError(f"{name} has the shape {list(array.shape)}, it must have {dimensions} dimensions")
    return array


def _of_chats(chats: NDArray[Any], model: Any, call: Call) -> Tensors:
    check_rows(len(chats), call.limits)
    documents = [_document(chat) for chat in chats]
    read = [document for document in documents if not isinstance(document, RequestError)]
    asked = iter(replies_to(read, model, call, lambda request: None))
    replies = [document if isinstance(document, RequestError) else next(asked) for document in documents]
    answered: list[dict[str, Any]] = raise_if_asked(replies, "raise")
    outputs: Tensors = {"replies": bytes_tensor([to_json(reply).encode("utf-8") for reply in answered])}
    if all("score" in reply for reply in answered):
        outputs["score"] = np.array([reply["score"] for reply in answered], np.float32)
    return outputs


def _document(chat: bytes) -> Any:
    try:
        return parse_json(chat)
    except RequestError as error:
        return error


def _of_ids(inputs: Mapping[str, NDArray[Any]], model: Any, call: Call) -> Tensors:
    ids = _checked("input_ids", inputs, "INT64", 2)
    check_rows(len(ids), call.limits)
    if not len(ids):
        raise RequestError("input_ids has no row")
    known = model.bundle.tokenizer().get_vocab_size()
    if ((ids < 0) | (ids >= known)).any():
        raise RequestError(f"input_ids holds an id that the tokenizer has not; they are 0 to {known - 1}")
    mask = np.ones_like(ids)
    if "attention_mask" in inputs:
        mask = _checked("attention_mask", inputs, "INT64", 2)
        if mask.shape != ids.shape or ((mask != 0) & (mask != 1)).any():
            raise RequestError(f"attention_mask must be of zeros and ones in the shape of input_ids, {list(ids.shape)}")
    rows = [_row(number, row, of_row) for number, (row, of_row) in enumerate(zip(ids, mask, strict=True))]
    longest = model.bundle.manifest.prompt.max_length
    if any(len(row) > longest for row in rows):
        raise RequestError(f"a row has more than {longest} ids, the most this model reads")
    outputs: Tensors = model.engine.run_rows(rows)
    lost = {
        row for array in outputs.values() for row in np.flatnonzero(~np.isfinite(array.reshape(len(rows), -1)).all(1))
    }
    if lost:
        reason = UnscorableError("the model gave no number for it; it lacks the tokens that this family reads from")
        raise ScoringError({int(row): reason for row in lost}, [None] * len(rows))
    return outputs


def _row(number: int, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row without its padding."""
    count = int(mask.sum())
    if not mask[:count].all():
        raise RequestError(f"row {number} is not padded on the right")
    if not count:
        raise RequestError(f"row {number} has no token")
    return ids[:count]
