"""The one thing every engine is: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

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
