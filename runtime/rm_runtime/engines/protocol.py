"""The one thing every engine is: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


class Engine(Protocol):
    """A loaded graph. `run` may be called from several threads."""

    name: str

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """inputs by name (input_ids, attention_mask: int64 [batch, sequence]) -> outputs by name, batch first.

        A SharedPrefixEngine also takes prefix_ids [1, prefix], the ids that go before every row.

        Raises EngineError if the engine fails, in one line.
        """


@runtime_checkable
class Reservable(Protocol):
    """An engine that takes the memory of a range of shapes when it first meets one of them."""

    def reserve(self) -> None:
        """Take it all now. Raises EngineError if there is not enough."""


@runtime_checkable
class RowRunner(Protocol):
    """What may stand in an engine's place: it makes batches of rows itself, a server's queue of many requests' rows."""

    def run_rows(self, rows: Sequence[NDArray[np.int64]]) -> Arrays:
        """As rm_runtime.batching.run_rows. Raises EngineError, and its own reasons why rows were not run."""
