"""The checkpoint in transformers as a contender of `rm-runtime bench --vs hf`, run as a process of its own.

transformers' own backbone with its fastest attention, in batches of rows in the order they come, padded to the longest,
as a script around it has them. The heads are left out, to its advantage: they are small, and not all of transformers.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_export.errors import ExportError
from rm_export.families import pairrm
from rm_export.hub import open_checkpoint_at
from rm_export.options import Options
from rm_export.reference_weights import CheckpointWeights, hf_config, hf_model
from rm_runtime.batching import pad_rows
from rm_runtime.bench.machine import versions_of
from rm_runtime.bench.worker import Subject, serve
from rm_runtime.bundle import open_bundle

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from rm_export.checkpoint import Checkpoint


@dataclass(frozen=True)
class HuggingFaceSubject:
    """A backbone in transformers. batch_rows: rows it takes at once."""

    engine: str
    versions: Mapping[str, str]
    backbone: Any
    pad_token_id: int
    batch_rows: int

    def run(self, rows: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """One number of each row's last hidden state."""
        return np.concatenate(
            [self._batch(rows[start : start + self.batch_rows]) for start in range(0, len(rows), self.batch_rows)]
        )

    def _batch(self, rows: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        import torch

        ids, mask = pad_rows(rows, self.pad_token_id)
        with torch.inference_mode():
            hidden = self.backbone(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state
        values: NDArray[np.float32] = hidden[range(len(rows)), [len(row) - 1 for row in rows], 0].float().numpy()
        return values


def open_hugging_face(settings: dict[str, Any]) -> Subject:
    """settings: bundle, checkpoint (None = the bundle's own), contender ("hf-float32"), threads, batch_rows.

    Raises CheckpointError or ExportError if the bundle's checkpoint cannot be read, or is another one.
    """
    import torch
    import transformers

    from rm_runtime.engines.cores import usable_cores

    manifest = open_bundle(settings["bundle"]).manifest
    name = settings["checkpoint"] or manifest.source.id
    checkpoint = open_checkpoint_at(name, manifest.source.revision if name == manifest.source.id else None)
    if checkpoint.config_sha256 != manifest.source.config_sha256:
        raise ExportError(f"{settings['bundle']} was not made from {name}; name its checkpoint with --checkpoint")
    torch.set_num_threads(settings["threads"] or usable_cores())
    transformers.logging.set_verbosity(logging.ERROR)  # it advises on training
    dtype = settings["contender"].removeprefix("hf-")
    backbone, attention = _backbone(checkpoint, manifest.family, dtype)
    engine = f"transformers {dtype}, {attention} attention"
    versions = versions_of("torch", "transformers")
    return HuggingFaceSubject(engine, versions, backbone, manifest.pad_token_id, settings["batch_rows"])


def _backbone(checkpoint: Checkpoint, family: str, dtype: str) -> tuple[Any, str]:
    """The backbone, and which attention it has: transformers' fused one where it has one for this model."""
    weights = CheckpointWeights(checkpoint)
    prefix, config = "model.", hf_config(checkpoint.config)
    if family == "scalar" and config.model_type == "deberta-v2":
        prefix = "deberta."
    if family == "pairrm":
        prefix = "pretrained_model."
        vocab_size, _ = weights.dims(f"{prefix}embeddings.word_embeddings.weight")
        config = hf_config(pairrm.backbone_config(checkpoint, Options()), vocab_size=vocab_size)
    try:
        model, attention = hf_model("AutoModel", config, dtype, "sdpa"), "sdpa"
    except ValueError:
        model, attention = hf_model("AutoModel", config, dtype), "eager"
    return weights.load(model, prefix, dtype), attention


if __name__ == "__main__":
    serve(open_hugging_face)
