"""Triton's requests -> the JSON requests that every front of rm_runtime reads, and what answers them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rm_runtime.errors import RequestError, RewardModelError, ScoringError
from rm_runtime.json_requests import RequestLine, parse_json, parse_request

CHATS = "chats"


def chats_of(request: Any) -> list[RequestLine | RequestError]:
    """The chats of a request, BYTES [n, 1], each a request or why it is none."""
    import triton_python_backend_utils as pb_utils

    chats = pb_utils.get_input_tensor_by_name(request, CHATS).as_numpy()
    return [_parsed(bytes(chat)) for chat in chats.ravel()]


def response(request: Any, outputs: dict[str, NDArray[Any]]) -> Any:
    """A response with those of the outputs that the request asks for."""
    import triton_python_backend_utils as pb_utils

    wanted = request.requested_output_names()
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, array) for name, array in outputs.items() if name in wanted]
    )


def refusal(error: RewardModelError) -> Any:
    """A response that says why there is none: the client's fault (HTTP 400), or ours (500)."""
    import triton_python_backend_utils as pb_utils

    _let_go(error)
    theirs = isinstance(error, (RequestError, ScoringError))
    code = pb_utils.TritonError.INVALID_ARG if theirs else pb_utils.TritonError.INTERNAL
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))


def _let_go(error: BaseException) -> None:
    """Of the frames an error was raised in: through them it would keep Triton's requests, whose memory is Triton's."""
    for one in (error, *(error.errors.values() if isinstance(error, ScoringError) else ())):
        one.__traceback__ = one.__context__ = None


def texts(values: Sequence[str]) -> NDArray[np.object_]:
    """BYTES [n] as Triton takes them."""
    return np.array([value.encode("utf-8") for value in values], np.object_)


def _parsed(chat: bytes) -> RequestLine | RequestError:
    try:
        return parse_request(parse_json(chat))
    except RequestError as error:
        return error
