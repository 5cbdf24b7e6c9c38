"""The bundles of a server, from loading to drain."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, Literal, TypeVar

import numpy as np

from rm_runtime.batching import run_rows
from rm_runtime.engines.shared_prefix import SharedPrefixEngine, warm_up
from rm_runtime.errors import RequestError
from rm_runtime.serving.batcher import Batcher
from rm_runtime.serving.errors import NotReadyError, QueueFullError, UnknownModelError
from rm_runtime.serving.job import lengths
from rm_runtime.serving.limits import Limits
from rm_runtime.serving.logs import log_event
from rm_runtime.serving.metrics import Metrics
from rm_runtime.serving.ticket import QueuedRows, Ticket
from rm_runtime.shared_prefixes import new_ids

TURN_BATCHES = 4
"""Batches of the engine in a turn: rows enough to be sorted by length and grouped by prefix, soon enough over for those
who come in the meantime."""

_PACE_TOKENS = 128
"""A row that is long enough to tell how fast an engine is, and not so long that the slowest is late to be ready."""

_STOP_SECONDS = 5.0
"""For the engine's last batch: nobody waits for it any longer."""

Result = TypeVar("Result")
State = Literal["loading", "ready", "draining"]


@dataclass(frozen=True)
class ServedModel:
    """A loaded bundle and the queue of its engine."""

    name: str
    model: Any
    batcher: Batcher

    def for_request(self, ticket: Ticket, **options: Any) -> Any:
        """The model with the queue in its engine's place; it scores as the model itself does, after its turn.

        options: RequestOptions fields that overrule the loaded ones.
        """
        model = copy.copy(self.model)
        model.engine = QueuedRows(self.name, self.batcher, ticket)
        model.options = dataclasses.replace(model.options, **options)
        return model


class Service:
    """Bundles by name, the first is the default, and the requests in work.

    open_model: a bundle's folder -> its model, as rm_runtime.load. `start` does that, and warms them up.
    """

    def __init__(
        self, bundles: Mapping[str, Path], open_model: Callable[[Path], Any], limits: Limits | None = None
    ) -> None:
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self.state: State = "loading"
        self.names = tuple(bundles)
        self.failure: Exception | None = None
        self._bundles = dict(bundles)
        self._open_model = open_model
        self._models: dict[str, ServedModel] = {}
        self._tickets: set[Ticket] = set()
        self._body_bytes = 0

    def start(self, failed: Callable[[], None]) -> None:
        """Load in the background. failed: called when a bundle cannot be loaded; `failure` then says why."""

        def work() -> None:
            try:
                for name, path in self._bundles.items():
                    self._add(name, self._open_model(path))
                    log_event("loaded", model=name, path=str(path))
            except Exception as error:  # told by whoever runs the server
                self.failure = error
                failed()
                return
            if self.state == "loading":
                self.state = "ready"
                log_event("ready", models=list(self.names))

        Thread(target=work, name="loading", daemon=True).start()

    def _add(self, name: str, model: Any) -> None:
        """Warm a model up and start its queue."""
        warm_up(model.engine, model.bundle.manifest.pad_token_id)
        pace = _pace(model)
        pad, tokens = model.bundle.manifest.pad_token_id, model.options.batch_tokens
        run = partial(
            run_rows, model.engine, pad_token_id=pad, batch_tokens=tokens, on_batch=self.metrics.batches(name)
        )
        work_of = new_ids if isinstance(model.engine, SharedPrefixEngine) else lengths
        waited = self.metrics.queue_time(name)
        batcher = Batcher(run, TURN_BATCHES * tokens, tokens, self.limits, waited, pace, work_of)
        self.metrics.watch(name, batcher)
        self._models[name] = ServedModel(name, model, batcher)

    def model(self, name: object = None) -> ServedModel:
        """The model of that name, or the first.

        Raises RequestError for what is no name, UnknownModelError, or NotReadyError while it is loaded.
        """
        if name is None:
            name = self.names[0]
        if not isinstance(name, str):
            raise RequestError('"model" must be the name of a model')
        if name not in self.names:
            raise UnknownModelError(f"no model {name!r} is served here; there is {', '.join(self.names)}")
        if name not in self._models:
            raise NotReadyError(f"{name} is being loaded")
        return self._models[name]

    @property
    def in_flight(self) -> int:
        """Requests in work."""
        return len(self._tickets)

    def open_ticket(self, client: str, seconds: float | None = None) -> Ticket:
        """Let a client's request in. seconds: that the client waits, if it says so.

        Raises NotReadyError, or QueueFullError if too many are in work.
        """
        if self.state != "ready":
            reason = "bundles are being loaded" if self.state == "loading" else "the server is stopping"
            raise NotReadyError(reason)
        known = any(ticket.client == client for ticket in self._tickets)
        limits = self.limits if known else self.limits.of_newcomers()
        if self.in_flight >= limits.max_requests:
            waits = (served.batcher.expected_wait() for served in self._models.values())
            later = max(1, math.ceil(max(waits)))
            raise QueueFullError(f"{self.in_flight} requests are being answered; try again later", retry_after=later)
        allowed = self.limits.timeout_seconds
        ticket = Ticket(allowed if seconds is None else min(seconds, allowed), client)
        self._tickets.add(ticket)
        self.metrics.in_flight.set(self.in_flight)
        return ticket

    def hold(self, ticket: Ticket, size: int) -> None:
        """Account for more bytes of a body. Raises QueueFullError if the bodies in work are too large together."""
        if self._body_bytes + size > self.limits.max_bodies_bytes:
            raise QueueFullError(f"bodies of {self._body_bytes} bytes are in work; try again later")
        self._body_bytes += size
        ticket.body_bytes += size

    def close_ticket(self, ticket: Ticket) -> None:
        """The request was answered."""
        self._tickets.discard(ticket)
        self._body_bytes -= ticket.body_bytes
        self.metrics.in_flight.set(self.in_flight)

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Run a request's work in a thread of its own.

        It ends with the request: of a pool, as many threads would stay, and their memory, as were ever needed at once.
        """
        future: Future[Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except BaseException as error:  # whatever it is: whoever waits for the future is told
                future.set_exception(error)

        Thread(target=run, name="request", daemon=True).start()
        return future

    def drain(self) -> None:
        """Let no more requests in; those in work go on."""
        if self.state != "draining":
            log_event("draining", in_flight=self.in_flight)
        self.state = "draining"

    def abandon(self) -> None:
        """Tell all that still wait that they will not be answered."""
        for ticket in list(self._tickets):
            ticket.end(NotReadyError("the server stopped before it came to this request"))

    def close(self) -> None:
        """Stop the queues."""
        self.abandon()
        end = time.monotonic() + _STOP_SECONDS
        for served in list(self._models.values()):
            served.batcher.close(max(0.0, end - time.monotonic()))


def _pace(model: Any) -> float:
    """Seconds that an id takes, 0 where that is not known before requests come."""
    if not isinstance(model.engine, SharedPrefixEngine):
        return 0.0
    ids = np.full((1, _PACE_TOKENS), model.bundle.manifest.pad_token_id, np.int64)
    started = time.monotonic()
    model.engine.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    return (time.monotonic() - started) / _PACE_TOKENS
