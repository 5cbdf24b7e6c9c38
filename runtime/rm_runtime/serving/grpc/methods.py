"""What each method answers: messages on the outside, the arrays of endpoints/inference.py within.

Source: kserve/open-inference-protocol, open_inference_grpc.proto; RepositoryIndex is Triton's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rm_runtime.errors import RequestError
from rm_runtime.serving.call import Call
from rm_runtime.serving.endpoints import inference
from rm_runtime.serving.endpoints.tensors import (
    Tensors,
    bytes_tensor,
    datatype_of,
    from_raw,
    named,
    refuse_datatype,
    shaped,
    to_raw,
)
from rm_runtime.serving.errors import NotReadyError, UnknownModelError
from rm_runtime.serving.grpc.messages import message
from rm_runtime.serving.service import Service

_CONTENTS = {"INT64": "int64_contents", "FP32": "fp32_contents", "BYTES": "bytes_contents"}
_REPOSITORY = "rm-runtime"


def _server_live(request: Any, service: Service) -> dict[str, Any]:
    return {"live": True}


def _server_ready(request: Any, service: Service) -> dict[str, Any]:
    return {"ready": service.state == "ready"}


def _model_ready(request: Any, service: Service) -> dict[str, Any]:
    _check_version(request.version)
    try:
        service.model(request.name or None)
    except NotReadyError:
        return {"ready": False}
    return _server_ready(request, service)


def _server_metadata(request: Any, service: Service) -> dict[str, Any]:
    return inference.server_metadata()


def _model_metadata(request: Any, service: Service) -> dict[str, Any]:
    _check_version(request.version)
    return inference.model_metadata(service.model(request.name or None))


def _repository_index(request: Any, service: Service) -> dict[str, Any]:
    if request.repository_name not in ("", _REPOSITORY):
        raise UnknownModelError(f"no repository {request.repository_name!r} here; there is {_REPOSITORY}")
    ready = service.state == "ready"
    state = {"version": inference.MODEL_VERSION, "state": "READY"} if ready else {"state": "UNAVAILABLE"}
    names = service.names if ready or not request.ready else ()
    return {"models": [{"name": name, **state} for name in names]}


QUESTIONS: dict[str, Callable[[Any, Service], dict[str, Any]]] = {
    "ServerLive": _server_live,
    "ServerReady": _server_ready,
    "ModelReady": _model_ready,
    "ServerMetadata": _server_metadata,
    "ModelMetadata": _model_metadata,
    "RepositoryIndex": _repository_index,
}
"""By method: its request -> the fields of its response. At once, as nothing is scored."""


def infer(request: Any, call: Call) -> Any:
    """ModelInfer: an answer in the form of the request, raw or typed contents, as Triton's clients read only the
    former and people only the latter.

    Raises what inference.infer raises, and RequestError for tensors that do not fit their shapes.
    """
    _check_version(request.model_version)
    for tensor in (*request.inputs, *request.outputs):
        inference.check_parameters(tensor.name, tensor.parameters)
    outputs = inference.infer(_inputs(request), [output.name for output in request.outputs], call)
    return message("ModelInferResponse")(
        model_name=call.model_name,
        model_version=inference.MODEL_VERSION,
        id=request.id,
        **_contents(outputs, raw=bool(request.raw_input_contents)),
    )


def _check_version(version: str) -> None:
    if version not in ("", inference.MODEL_VERSION):
        raise UnknownModelError(f"no version {version!r} here; every model has only version {inference.MODEL_VERSION}")


def _inputs(request: Any) -> Tensors:
    raws = request.raw_input_contents
    if raws and len(raws) != len(request.inputs):
        raise RequestError(f"there are {len(raws)} raw_input_contents for {len(request.inputs)} inputs")
    return named(
        (tensor.name, _array(tensor, raws[place] if raws else None)) for place, tensor in enumerate(request.inputs)
    )


def _array(tensor: Any, raw: bytes | None) -> NDArray[Any]:
    if raw is not None and tensor.HasField("contents"):
        raise RequestError(f"{tensor.name} has contents, and there are raw_input_contents; send one of them")
    values = _typed(tensor) if raw is None else from_raw(tensor.name, tensor.datatype, raw)
    return shaped(tensor.name, values, list(tensor.shape))


def _typed(tensor: Any) -> NDArray[Any]:
    if tensor.datatype == "INT64":
        return np.array(tensor.contents.int64_contents, np.int64)
    if tensor.datatype == "BYTES":
        return bytes_tensor(tensor.contents.bytes_contents)
    raise refuse_datatype(tensor.name, tensor.datatype)


def _contents(outputs: Tensors, raw: bool) -> dict[str, Any]:
    """The response's outputs and raw_output_contents."""
    described: list[dict[str, Any]] = [
        {"name": name, "datatype": datatype_of(array), "shape": array.shape} for name, array in outputs.items()
    ]
    if raw:
        return {"outputs": described, "raw_output_contents": [to_raw(array) for array in outputs.values()]}
    for tensor, array in zip(described, outputs.values(), strict=True):
        tensor["contents"] = {_CONTENTS[tensor["datatype"]]: array.ravel().tolist()}
    return {"outputs": described}
