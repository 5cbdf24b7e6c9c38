"""A stream of JSON lines -> the lines that answer it, in the same order and in bounded memory.

json_requests.py says what a line holds. A line that cannot be answered gives {"error": "...", "line": n} in
its place, lines counted from 1; the others are still answered. "id" is passed on to the answer. Blank lines
have no answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from rm_runtime.errors import RequestError, RewardModelError, UnscorableError
from rm_runtime.json_requests import Reply, RequestLine, answer_requests, parse_json, parse_request, to_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

CHUNK_LINES = 256
"""Lines answered as one batched request: enough to fill batches with lines of about one length."""

CHUNK_BYTES = 8 * 2**20
"""The same in bytes; a line counts once for each of its responses, as each of them is a prompt of its own."""

MAX_LINE_BYTES = 16 * 2**20
"""A longer line is an error, and is never held in memory as a whole."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Answer:
    """The answer to line `line` of the input: one line of JSON, without its line end; failed: it is an
    error."""

    line: int
    text: str
    failed: bool


@dataclass(frozen=True)
class Line:
    """A request as it was read. number: its line, or its row in a table, from 1.

    passed_on: the keys that its answer repeats; request: or why it holds none; size: bytes of what it makes the model
    read, roughly.
    """

    number: int
    passed_on: dict[str, Any]
    request: RequestLine | RequestError
    size: int


def answer_lines(model: Any, source: BinaryIO, *, ranking: bool = False) -> Iterator[list[Answer]]:
    """Answer the lines of `source`, a chunk at a time: the model runs a chunk as one batched request.

    source: lines of UTF-8 that end in LF or CRLF; a byte order mark may come first. Nothing is read beyond
    the chunk in work. ranking: refuse lines without responses. Raises what is not one line's fault, e.g. EngineError.
    """
    return (answer_chunk(model, chunk) for chunk in chunks_of(read_lines(source, ranking=ranking)))


def read_lines(source: BinaryIO, *, ranking: bool, before: int = 0) -> Iterator[Line]:
    """The requests of the lines that are not blank. before: how many lines of the file come before the place that
    `source` stands at."""
    return (parse_line(number, text, ranking) for number, text in _numbered_lines(source, before))


def chunks_of(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Cut requests into chunks, from wherever they were read; none is read beyond the chunk that is asked for. The same
    lines make the same chunks, so that one who starts at a chunk's end gets the same answers."""
    chunk: list[Line] = []
    size = 0
    for line in lines:
        chunk.append(line)
        size += line.size
        if len(chunk) == CHUNK_LINES or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def answer_chunk(model: Any, chunk: Sequence[Line]) -> list[Answer]:
    """The answers to lines that the model runs as one batched request. Raises what is not one line's fault."""
    requests = [line.request for line in chunk if isinstance(line.request, RequestLine)]
    replies = iter(answer_requests(model, requests))
    return [_answer(line, next(replies) if isinstance(line.request, RequestLine) else line.request) for line in chunk]


def parse_line(number: int, text: bytes | RequestError, ranking: bool) -> Line:
    """The request that a line holds."""
    if isinstance(text, RequestError):
        return Line(number, {}, text, 0)
    try:
        document = parse_json(text)
    except RequestError as error:
        return Line(number, {}, error, 0)
    return parse_document(number, document, len(text), ranking)


def parse_document(number: int, document: object, size: int, ranking: bool) -> Line:
    """The request that a parsed value is. size: of the value in bytes, which counts once for each response."""
    passed_on: dict[str, Any] = {}
    try:
        if isinstance(document, dict) and "id" in document:
            if isinstance(document["id"], (dict, list)):
                raise RequestError('"id" must be a string or a number, not an object or an array')
            passed_on = {"id": document["id"]}
        request = parse_request(document)
        if ranking and request.responses is None:
            raise RequestError('ranking needs "responses", the answers to rank')
    except RequestError as error:
        return Line(number, passed_on, error, 0)
    return Line(number, passed_on, request, size * len(request.responses or [document]))


def _numbered_lines(source: BinaryIO, before: int) -> Iterator[tuple[int, bytes | RequestError]]:
    """The lines that are not blank, each with its number; an error for one that is too long."""
    number = before
    while text := source.readline(MAX_LINE_BYTES):
        number += 1
        if len(text) == MAX_LINE_BYTES and not text.endswith(b"\n"):
            while (text := source.readline(MAX_LINE_BYTES)) and not text.endswith(b"\n"):
                pass
            yield number, RequestError(f"longer than {MAX_LINE_BYTES} bytes")
            continue
        if number == 1:
            text = text.removeprefix(_BYTE_ORDER_MARK)
        if text.strip():
            yield number, text.rstrip(b"\r\n")


def _answer(line: Line, reply: Reply) -> Answer:
    if not isinstance(reply, RewardModelError):
        try:
            return Answer(line.number, to_json({**line.passed_on, **reply}), failed=False)
        except ValueError:
            reply = UnscorableError("the model gave a number that is not finite")
    error = {"error": str(reply), "line": line.number}
    return Answer(line.number, to_json({**line.passed_on, **error}), failed=True)
