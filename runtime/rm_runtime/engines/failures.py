"""What an engine throws, as one line for the reader."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from rm_runtime.errors import EngineError

_LONGEST = 300
_PLACE = re.compile(r"Exception from \S+:\d+:|Check '.*?' failed at \S+:\d+:|FrontEnd API failed with \w+:")
_NO_MEMORY = re.compile(r"bad_alloc|bad allocation|out of memory|failed to allocate", re.IGNORECASE)


def one_line(error: Exception) -> str:
    """The message of an engine's exception, in one line of at most 300 characters, without places in its sources."""
    text = " ".join(_PLACE.sub("", str(error)).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def run_failure(engine: str, error: Exception, inputs: Mapping[str, NDArray[Any]]) -> EngineError:
    """The error to raise when an engine threw while running on `inputs`."""
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        shape = " x ".join(str(size) for size in next(iter(inputs.values())).shape)
        return EngineError(f"{engine} ran out of memory on a batch of {shape} ids; lower batch_tokens (--batch-tokens)")
    return EngineError(f"{engine} failed: {one_line(error)}")


def load_failure(engine: str, error: Exception, path: object) -> EngineError:
    """The error to raise when an engine threw while loading the graph at `path`."""
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return EngineError(
            f"{engine} ran out of memory while loading {path}; export it with --int8 or free some memory"
        )
    return EngineError(f"{engine} cannot load {path}: {one_line(error)}")
