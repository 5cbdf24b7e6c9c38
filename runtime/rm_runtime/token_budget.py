"""How many ids a batch may hold where the memory for its activations is short."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rm_runtime.batching import DEFAULT_BATCH_TOKENS

LEAST_BATCH_TOKENS = 256
"""Below it the engine reads all weights for little work; a row longer than the budget is run alone anyway."""

SHARE_OF_MEMORY = 0.5
"""Of what is left, for activations: requests come from several threads, and others live on the machine too."""


def token_budget(architecture: Mapping[str, Any], free_bytes: float) -> int:
    """Ids a batch may hold by default: DEFAULT_BATCH_TOKENS, or as many as fit if memory for that is not left.

    architecture: of the manifest. free_bytes: what the process may take beside the weights.
    """
    fitting = SHARE_OF_MEMORY * free_bytes / activation_bytes(architecture)
    return int(max(LEAST_BATCH_TOKENS, min(DEFAULT_BATCH_TOKENS, fitting)))


def activation_bytes(architecture: Mapping[str, Any]) -> int:
    """What the layer in work holds for one id: eight vectors of the hidden size and three of the inner one, float32.

    Source: benchmarks/batch_tokens.py, whose peaks per id this bounds on both engines. 1 if the sizes are not known.
    """
    sizes = 8 * architecture.get("hidden_size", 0) + 3 * architecture.get("intermediate_size", 0)
    return max(1, 4 * int(sizes))
