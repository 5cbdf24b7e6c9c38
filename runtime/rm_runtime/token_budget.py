"""How many ids a batch may hold if nobody says: by the kind of model, and where memory is short by what fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rm_runtime.batching import DEFAULT_BATCH_TOKENS
from rm_runtime.bundle import Bundle
from rm_runtime.engines.memory import available_bytes

ENCODERS = frozenset({"deberta-v2"})
"""Values of the manifest's architecture.model_type whose attention runs in both directions, and is written out."""

ENCODER_BATCH_TOKENS = 1024
"""For encoders on the CPU: their attention writes so much an id that larger batches leave the cache and are slower, and
they share no prefixes. Source: benchmarks/batch_tokens.py."""

LEAST_BATCH_TOKENS = 256
"""Below it the engine reads all weights for little work; a row longer than the budget is run alone anyway."""

ENCODER_IDS = 2048
"""The longest rows an encoder is given: PairRM's input and two candidates."""

SHARE_OF_MEMORY = 0.5
"""Of what is left, for activations: requests come from several threads, and others live on the machine too."""


def default_batch_tokens(bundle: Bundle, device: str | None) -> int:
    """What load takes where no budget is given; device: as in load. DEFAULT_BATCH_TOKENS on a GPU, whatever it has."""
    if device not in (None, "cpu") or bundle.manifest.target != "cpu":
        return DEFAULT_BATCH_TOKENS
    return token_budget(bundle.manifest.architecture, available_bytes() - bundle.weight_bytes)


def token_budget(architecture: Mapping[str, Any], free_bytes: float) -> int:
    """Ids a batch may hold on the CPU: the model's kind's own, or as many as fit if memory for that is not left.

    architecture: of the manifest. free_bytes: what the process may take beside the weights.
    """
    encodes = architecture.get("model_type") in ENCODERS
    fitting = SHARE_OF_MEMORY * free_bytes / activation_bytes(architecture)
    return int(max(LEAST_BATCH_TOKENS, min(ENCODER_BATCH_TOKENS if encodes else DEFAULT_BATCH_TOKENS, fitting)))


def activation_bytes(architecture: Mapping[str, Any]) -> int:
    """What the layer in work holds for one id, in float32; 1 if the sizes are not known.

    Nine vectors of the hidden size and six of the inner one; in encoders, whose attention is written out, also six rows
    of scores a head. Source: benchmarks/batch_tokens.py, whose peaks per id this bounds on both engines.
    """
    floats = 9 * architecture.get("hidden_size", 0) + 6 * architecture.get("intermediate_size", 0)
    if architecture.get("model_type") in ENCODERS:
        floats += 6 * architecture.get("num_heads", 0) * ENCODER_IDS
    return max(1, 4 * int(floats))
