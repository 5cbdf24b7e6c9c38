"""A bundle's two graphs behind one engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rm_runtime.engines.protocol import Arrays, Engine, Reservable, RowRunner


class SharedPrefixEngine:
    """Runs the plain graph, and where the inputs have prefix_ids [1, prefix] the graph that shares them.

    The second graph is opened when it is first asked for: it takes memory of its own (docs/performance.md).
    """

    def __init__(self, plain: Engine, open_second: Callable[[], Engine]) -> None:
        self.name = plain.name
        self._plain = plain
        self._open_second = open_second
        self._second: Engine | None = None
        self._lock = Lock()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        return (self._opened() if "prefix_ids" in inputs else self._plain).run(inputs)

    def reserve(self) -> None:
        """Open the second graph, and take what memory both will need. Raises EngineError if there is not enough."""
        for engine in (self._plain, self._opened()):
            if isinstance(engine, Reservable):
                engine.reserve()

    def _opened(self) -> Engine:
        with self._lock:
            if self._second is None:
                self._second = self._open_second()
            return self._second


def warm_up(engine: Engine | RowRunner, pad_token_id: int) -> None:
    """Open the graph of shared prefixes and take an engine's memory now, not while a client waits: for a length that
    comes later there might be none left. `load` has run the other graph."""
    if isinstance(engine, SharedPrefixEngine):
        ids = np.full((1, 2), pad_token_id, np.int64)
        engine.run({"input_ids": ids, "attention_mask": np.ones_like(ids), "prefix_ids": ids})
    if isinstance(engine, Reservable):
        engine.reserve()
