"""Chunks answered by the actors of a Ray cluster, through Ray Data (extra `ray`).

The chunks are a Ray Dataset in the order they are asked, its actor pool answers them, and its rows come back in that
order. What a dead worker or node had in work, Ray gives to another. The driver alone reads files and writes answers.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_runtime.bulk.settings import fingerprint
from rm_runtime.engines.cores import usable_cores
from rm_runtime.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from rm_runtime.bulk.pool import Chunk, Mark
    from rm_runtime.bulk.ray_workers import Reply
    from rm_runtime.bundle import Bundle
    from rm_runtime.jsonl import Answer

CONNECT_SECONDS = 20.0
"""How long a cluster may take to answer."""

SECONDS_TO_MOVE = 5.0
"""How long Ray may take to start an actor of a lost node on another; then all actors start anew in the room left."""

_LOCAL = "local"  # Ray's own word for a cluster that this process starts and ends
_CHUNKS_AHEAD = 3  # for each actor: one in work, one beside it, one on its way


class RayPool(contextlib.AbstractContextManager["RayPool"]):
    """The actors of a Ray cluster, each with the bundle loaded once. Ends its part of the cluster when it is left.

    bundle: must be at the same path on every node. options: of load, with the engine's name; its threads are the CPUs
    an actor takes, None = those of the smallest node. address: host:port, "auto", "local" or None, which is RAY_ADDRESS
    or else "local". actors: None = as many as have room. say: tells the user that a worker died.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: Mapping[str, Any],
        *,
        address: str | None,
        actors: int | None,
        say: Callable[[str], None],
    ) -> None:
        self._bundle = bundle
        self._options = options
        self._address = address or os.environ.get("RAY_ADDRESS") or _LOCAL
        self._actors = actors
        self._say = say
        self._running = 0  # actors
        self._asked = 0
        self._answered = 0
        self._desk: Any = None
        self._replies: Generator[Reply] | None = None
        self._closing = contextlib.ExitStack()

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def open(self) -> None:
        """Connect, and wait until an actor has loaded the bundle.

        Raises EngineError: Ray is not installed, the cluster is not there or has no room, an actor cannot load the
        bundle.
        """
        if self._replies is not None:
            return
        _import_ray(on_loopback=self._address == _LOCAL)
        with _silent_stderr():
            self._closing.enter_context(_connected(self._address))
            self._closing.callback(self._stop)  # before the cluster is left, which its threads would start again
            self._replies = self._started()
            self._put([])
            self._next_reply()

    def answer(self, chunks: Iterator[Chunk[Mark]]) -> Iterator[tuple[Chunk[Mark], list[Answer]]]:
        """Takes up to three chunks an actor ahead of the one it gives back."""
        waiting: deque[Chunk[Mark]] = deque()
        while True:
            while len(waiting) < _CHUNKS_AHEAD * max(1, self._running) and (chunk := next(chunks, None)) is not None:
                waiting.append(chunk)
                if chunk.lines:
                    self._put(chunk.lines)
            if not waiting:
                return
            chunk = waiting.popleft()
            yield chunk, self._answers_to(chunk) if chunk.lines else []

    def _answers_to(self, chunk: Chunk[Mark]) -> list[Answer]:
        reply = self._next_reply()
        place = f"{chunk.source}: lines {chunk.lines[0].number} to {chunk.lines[-1].number}"
        deaths = reply.attempts - 1
        if not reply.answers:
            raise EngineError(
                f"{place}: {deaths} workers died while answering; give each more memory, or choose --batch-tokens"
            )
        if deaths:
            self._say(f"{place}: {deaths} worker{'s' * (deaths > 1)} died while answering; another has answered")
        return list(reply.answers)

    def _put(self, lines: Sequence[Any]) -> None:
        self._desk.put.remote(self._asked, pickle.dumps(list(lines)))
        self._asked += 1

    def _next_reply(self) -> Reply:
        import ray

        while True:
            assert self._replies is not None
            try:
                reply = next(self._replies)
            except Exception as error:  # of Ray, of many kinds
                if not ray.get(self._desk.recover.remote()):
                    raise EngineError(f"Ray could not go on: {_first_line(error)}") from error
                self._replies = self._started()
                self._say("a node of the Ray cluster is gone; actors start anew on those that are left")
                continue
            self._desk.end.remote(self._answered)
            self._answered += 1
            if reply.failure is not None:
                raise EngineError(reply.failure)
            return reply

    def _stop(self) -> None:
        if self._replies is not None:
            self._replies.close()

    def _started(self) -> Generator[Reply]:
        """Start a dataset of the chunks that are not answered; its replies in order."""
        import ray
        from ray.data import ActorPoolStrategy, DataContext, read_datasource
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from rm_runtime.bulk.ray_workers import Answerer, ChunkSource, Desk

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        on_gpu = (self._options["device"] or self._bundle.manifest.target).startswith(("cuda", "tensorrt"))
        threads, room = actor_room(nodes, self._options["threads"], on_gpu)
        if not room:
            raise EngineError(
                f"no node of the Ray cluster has {threads} CPUs{' and a GPU' * on_gpu} for an actor; choose --threads"
            )
        self._running = self._actors or room
        here = ray.get_runtime_context().get_node_id()
        if self._desk is None:
            beside = NodeAffinitySchedulingStrategy(here, soft=False)
            self._desk = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=beside).remote(SECONDS_TO_MOVE)
        context = DataContext()
        context.execution_options.preserve_order = True
        context.target_max_block_size = 1  # a block is a chunk, however small
        context.execution_no_progress_timeout_s = -1  # a chunk may take hours
        context.enable_progress_bars = False
        with DataContext.current(context):
            chunks = read_datasource(
                ChunkSource(self._desk, self._answered),
                override_num_blocks=1,
                num_cpus=0,
                label_selector={"ray.io/node-id": here},
            )
            replies = chunks.map_batches(
                Answerer,
                fn_constructor_args=(
                    self._desk,
                    os.path.abspath(self._bundle.path),
                    fingerprint(self._bundle),
                    {**self._options, "threads": threads},
                ),
                batch_size=1,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=self._running, max_tasks_in_flight_per_actor=2),
                num_cpus=threads,
                num_gpus=1 if on_gpu else None,
            )
            return self._read(replies)

    def _read(self, replies: Any) -> Generator[Reply]:
        batches = iter(replies.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        with contextlib.closing(batches):
            for rows in batches:
                for row in rows.to_pylist():
                    yield pickle.loads(row["reply"])


def actor_room(nodes: Sequence[Mapping[str, float]], threads: int | None, on_gpu: bool) -> tuple[int, int]:
    """CPUs of an actor, and how many such actors have room.

    nodes: what each has, as Ray counts it: "CPU", "GPU". threads: CPUs of an actor, None = those of the smallest node,
    on GPUs those of it for each GPU. on_gpu: an actor takes a GPU too.
    """
    able = [(node.get("CPU", 0), node.get("GPU", 0) if on_gpu else 1) for node in nodes]
    able = [(cpus, gpus) for cpus, gpus in able if cpus >= 1 and gpus >= 1]
    if threads is None:
        threads = max(1, min((int(cpus // gpus) for cpus, gpus in able), default=1))
    return threads, sum(int(min(cpus // threads, gpus if on_gpu else math.inf)) for cpus, gpus in able)


def _import_ray(*, on_loopback: bool) -> None:
    """Import Ray, told to be quiet. on_loopback: what it starts listens there alone. Raises EngineError if it is not
    installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers of each cluster
    if on_loopback:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's switch for it on every system, read at its import
    try:
        import ray.data  # noqa: F401  sets up the loggers
    except ImportError as error:
        raise EngineError(f"--engine-pool ray needs Ray ({error}); pip install 'rm-export[ray]'") from None
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL + 1)  # its log file has all of it


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Ray's C++ writes warnings about Ray Data's own actors to this process's stderr."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """In a Ray cluster: that of `address`, or one of this machine that ends with this. Raises EngineError."""
    import ray

    options: dict[str, Any] = {"address": address}
    if address == _LOCAL:
        options |= {"num_cpus": usable_cores(), "include_dashboard": False}
    elif address != "auto":
        _check_reachable(address)
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EngineError(f"no Ray cluster at {address}: {_first_line(error)}") from error
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # stdout is where Ray tells of workers that died, until it is shut down
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            yield
        finally:
            ray.shutdown()
            signal.signal(signal.SIGTERM, before)


def _check_reachable(address: str) -> None:
    """Ray itself would try for ever, deaf to signals; so one of its commands tries first. Raises EngineError."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise EngineError(f"--ray-address {address}: host:port of the cluster's head, of which this machine is a node")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise EngineError(f"no Ray cluster at {address}: {error}; ray status shows it, ray start joins it") from None
    asking = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        subprocess.run(asking, timeout=CONNECT_SECONDS, capture_output=True, check=False)
    except subprocess.TimeoutExpired:
        raise EngineError(f"no Ray cluster at {address}: no answer in {CONNECT_SECONDS:.0f} s") from None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
