"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from rm_runtime.serving.batcher import Batcher

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKENS = tuple(2**power for power in range(4, 17))


class Metrics:
    """One server's counters, in a registry of their own. Times are in seconds."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "rm_requests", "Answered requests, by route and status.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "rm_request_seconds", "From a request's head to its answer.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.errors = Counter("rm_errors", "Requests that failed, by kind of error.", ["kind"], registry=registry)
        self.in_flight = Gauge("rm_requests_in_flight", "Requests being answered.", registry=registry)
        self._queue_seconds = Histogram(
            "rm_queue_seconds", "From a row's arrival to its turn.", ["model"], buckets=_SECONDS, registry=registry
        )
        self._batch_tokens = Histogram(
            "rm_batch_tokens", "Ids of a batch, padding included.", ["model"], buckets=_TOKENS, registry=registry
        )
        self._padding = Counter("rm_padding_tokens", "Ids of padding the engine ran.", ["model"], registry=registry)
        self._rows = Counter("rm_rows", "Rows the engine ran.", ["model"], registry=registry)
        self._waiting = Gauge("rm_waiting_rows", "Rows that wait for their turn.", ["model"], registry=registry)
        self._waiting_tokens = Gauge("rm_waiting_tokens", "Their ids.", ["model"], registry=registry)
        self._expected = Gauge(
            "rm_expected_wait_seconds", "That the engine is expected to take for them.", ["model"], registry=registry
        )

    def queue_time(self, model: str) -> Callable[[float], None]:
        """What a Batcher tells its waiting times."""
        histogram = self._queue_seconds.labels(model)
        return histogram.observe

    def batches(self, model: str) -> Callable[[Mapping[str, NDArray[Any]]], None]:
        """What run_rows tells its batches. A shared prefix counts once, as it is computed."""
        tokens, padding = self._batch_tokens.labels(model), self._padding.labels(model)
        rows = self._rows.labels(model)

        def count(inputs: Mapping[str, NDArray[Any]]) -> None:
            mask = inputs["attention_mask"]
            prefix = inputs["prefix_ids"].size if "prefix_ids" in inputs else 0
            tokens.observe(prefix + mask.size)
            padding.inc(mask.size - int(mask.sum()))
            rows.inc(len(mask))

        return count

    def watch(self, model: str, batcher: Batcher) -> None:
        """Show how much waits in a model's queue."""
        self._waiting.labels(model).set_function(lambda: batcher.waiting_rows)
        self._waiting_tokens.labels(model).set_function(lambda: batcher.waiting_tokens)
        self._expected.labels(model).set_function(batcher.expected_wait)

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)
