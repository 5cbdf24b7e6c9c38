"""Errors as gRPC tells them: a code, a line, and metadata behind the answer."""

from __future__ import annotations

import grpc

from rm_runtime.serving.errors import ServingError, status_of, told

_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""By HTTP status. 413 is not RESOURCE_EXHAUSTED, which clients wait for: it will never fit."""
_MAX_LINE_BYTES = 4096
"""Of the line as it is sent, in a header: clients refuse more than 8 KiB of those."""


def code_of(error: Exception) -> grpc.StatusCode:
    """The code an error is answered with: INVALID_ARGUMENT for what the client wrote, INTERNAL for what is ours."""
    status = status_of(error)
    return _CODES.get(status, grpc.StatusCode.INVALID_ARGUMENT if status < 500 else grpc.StatusCode.INTERNAL)


def line_of(error: Exception) -> str:
    """What the client is told, cut where it would not fit a header: a thousand rows may each have their reason."""
    line = told(error).encode("utf-8", "replace").decode("utf-8")
    size = 0
    for place, character in enumerate(line):
        size += 1 if " " <= character <= "~" else 3 * len(character.encode("utf-8"))  # %XX of each byte
        if size > _MAX_LINE_BYTES:
            return f"{line[:place]} ..."
    return line


def metadata_of(error: Exception) -> tuple[tuple[str, str], ...]:
    """error-type, as in the JSON of HTTP's errors, and retry-after in seconds where coming back may help."""
    metadata = [("error-type", type(error).__name__)]
    if isinstance(error, ServingError) and error.retry_after is not None:
        metadata.append(("retry-after", str(error.retry_after)))
    return tuple(metadata)
