"""What runs inside a Ray cluster for a run over files: the desk that hands chunks out, the reader that brings them into
a Ray Dataset, and the actors that answer them. Imports Ray (extra `ray`)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import pickle
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from rm_runtime.bulk.settings import fingerprint
from rm_runtime.bundle import open_bundle
from rm_runtime.errors import BundleError, EngineError, RewardModelError
from rm_runtime.jsonl import Answer, answer_chunk
from rm_runtime.loading import load

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ATTEMPTS = 3
"""How many workers may die over one chunk, or as they load the bundle in one actor, before the run ends."""


@dataclass(frozen=True)
class Reply:
    """What an actor makes of a chunk. attempts: how many workers began it, this one included, which asked nothing if
    that is beyond ATTEMPTS; failure: one line, why the run cannot go on."""

    answers: Sequence[Answer]
    attempts: int = 1
    failure: str | None = None


class NodeLostError(Exception):
    """A node has gone, and what its actors had in work waits for room that is not there."""


class Desk:
    """An actor beside the driver that keeps each chunk until the driver has its answers: a reader or a worker that dies
    has its chunks given out again.

    seconds_to_move: how long an actor of a lost node may take to start on another, the bundle not included, before all
    actors start anew in the room that is left.
    """

    def __init__(self, seconds_to_move: float) -> None:
        self._seconds_to_move = seconds_to_move
        self._chunks: dict[int, bytes] = {}
        self._answered = 0
        self._attempts: Counter[int | str] = Counter()
        self._node_of: dict[str, str] = {}
        self._lost_since: float | None = None
        self._changed = asyncio.Condition()

    async def put(self, number: int, chunk: bytes) -> None:
        """Take chunk `number`, counted from 0."""
        async with self._changed:
            self._chunks[number] = chunk
            self._changed.notify_all()

    async def take(self, number: int) -> bytes:
        """The chunk of that number, waited for; nothing if the driver has its answers already.

        Raises NodeLostError: Ray Data gives an actor's chunks to no other one, so the dataset has to end then.
        """
        async with self._changed:
            while number not in self._chunks and number >= self._answered:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), timeout=1)
                if self._is_lost():
                    raise NodeLostError
            return self._chunks.get(number, b"")

    async def enter(self, actor: str, node: str) -> int:
        """An actor is about to load the bundle on that node. How many times it has tried without success, now
        included."""
        self._node_of[actor] = node
        return await self.begin(actor)

    async def begin(self, work: int | str) -> int:
        """How many times this chunk was begun, now included."""
        self._attempts[work] += 1
        return self._attempts[work]

    async def end(self, work: int | str) -> None:
        """It went well. A chunk is let go, as its answers are with the driver."""
        self._attempts.pop(work, None)
        if isinstance(work, int):
            self._chunks.pop(work, None)
            self._answered = work + 1

    async def recover(self) -> bool:
        """Whether a node was lost; if so, all is as before the first actor, but for the answers that the driver has."""
        lost = any(node not in _living_nodes() for node in self._node_of.values())
        if lost:
            self._node_of.clear()
            self._attempts.clear()
            self._lost_since = None
        return lost

    def _is_lost(self) -> bool:
        """For as long as Ray may need to start an actor elsewhere, it is not."""
        living = _living_nodes()
        if all(node in living for node in self._node_of.values()):
            self._lost_since = None
        elif self._lost_since is None:
            self._lost_since = time.monotonic()
        return self._lost_since is not None and time.monotonic() - self._lost_since > self._seconds_to_move


def _living_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


class ChunkSource(Datasource):
    """The chunks of a desk, from `first` on, as rows {number, chunk} without an end: the driver knows when it has its
    answers."""

    def __init__(self, desk: Any, first: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Ray's
        self._desk = desk
        self._first = first

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known."""
        return None

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
        """One task, as chunks come one after the other. Begun again after a crash, it yields the same rows again."""
        desk, first = self._desk, self._first

        def read() -> Iterator[pyarrow.Table]:
            for number in itertools.count(first):
                chunk = ray.get(desk.take.remote(number))
                yield pyarrow.table({"number": [number], "chunk": pyarrow.array([chunk], pyarrow.large_binary())})

        return [ReadTask(read, BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None))]


class Answerer:
    """An actor that holds a loaded bundle and answers chunks.

    desk: the Desk. path: of the bundle, here. bundle: the fingerprint of the driver's. options: of load. A failure is
    told in replies, as an exception would have Ray start the actor again.
    """

    def __init__(self, desk: Any, path: str, bundle: str, options: Mapping[str, Any]) -> None:
        self._desk = desk
        self._node = ray.util.get_node_ip_address()
        self._failure: str | None = None
        context = ray.get_runtime_context()
        actor = context.get_actor_id()
        try:
            if ray.get(desk.enter.remote(actor, context.get_node_id())) > ATTEMPTS:
                raise EngineError(f"{ATTEMPTS} workers died as they loaded {path}; is there memory for it?")
            if fingerprint(open_bundle(path)) != bundle:
                raise BundleError(f"{path} is another bundle than where the command runs; every node must see the same")
            self._model = load(path, **options)
            ray.get(desk.end.remote(actor))
        except Exception as error:
            self._failure = self._told(error)

    def __call__(self, rows: pyarrow.Table) -> pyarrow.Table:
        """Rows {number, chunk} -> rows {number, reply}."""
        replies = [
            pickle.dumps(self._reply(row["number"], row["chunk"])) if row["chunk"] else b"" for row in rows.to_pylist()
        ]
        return pyarrow.table({"number": rows["number"], "reply": pyarrow.array(replies, pyarrow.large_binary())})

    def _reply(self, number: int, chunk: bytes) -> Reply:
        if self._failure is not None:
            return Reply([], failure=self._failure)
        attempts = ray.get(self._desk.begin.remote(number))
        if attempts > ATTEMPTS:
            return Reply([], attempts)
        try:
            return Reply(answer_chunk(self._model, pickle.loads(chunk)), attempts)
        except Exception as error:
            return Reply([], attempts, self._told(error))

    def _told(self, error: Exception) -> str:
        traceback.print_exception(error)  # into the worker's log, which Ray keeps
        message = str(error) if isinstance(error, RewardModelError) else f"{type(error).__name__} {error}"
        return f"node {self._node}: {message}"
