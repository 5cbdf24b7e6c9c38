"""transformers models filled from our own reader: the configuration as data, the weights tensor by tensor.

Nothing of the checkpoint is executed (no auto_map, no remote code, no pickle), a bfloat16 or mixed checkpoint
becomes exactly float32, and never more than one copy of the weights is held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rm_export.errors import CheckpointError
from rm_export.families.plan import is_buffer
from rm_export.tensors import to_float32

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from rm_export.checkpoint import Checkpoint
    from rm_export.tensors import FileTensor

_NOT_ARCHITECTURE = (
    "architectures",
    "auto_map",
    "dtype",
    "model_type",
    "torch_dtype",
    "transformers_version",
)
"""Keys of config.json that say how it was stored, or ask for code."""


def hf_config(config: Mapping[str, Any], **overrides: Any) -> Any:
    """transformers' own configuration object of a parsed config.json, chosen by its model_type."""
    import transformers

    fields = {key: value for key, value in config.items() if key not in _NOT_ARCHITECTURE and key[0] != "_"}
    return transformers.AutoConfig.for_model(str(config.get("model_type")), **{**fields, **overrides})


def hf_model(auto_class: str, config: Any, dtype: str = "float32", attention: str = "eager") -> Any:
    """A transformers model of that dtype and attention, its weights allocated but not even touched.

    Raises ValueError if transformers has no such attention for it.
    """
    import torch
    import transformers
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model = getattr(transformers, auto_class).from_config(
            config, dtype=getattr(torch, dtype), attn_implementation=attention, trust_remote_code=False
        )
    model.tie_weights()
    return model


class CheckpointWeights:
    """The checkpoint's tensors, each to be taken exactly once, as float32."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._where = checkpoint.id
        self._left = {name: tensor for name, tensor in checkpoint.tensors.items() if not is_buffer(name)}

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def names(self, prefix: str) -> list[str]:
        """Names not yet taken that begin with `prefix`."""
        return [name for name in self._left if name.startswith(prefix)]

    def dims(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor not yet taken."""
        return self._stored(name).dims

    def take(self, name: str) -> torch.Tensor:
        """One tensor."""
        import torch

        value = torch.empty(self.dims(name))
        self._fill(value, name)
        return value

    def load(self, model: torch.nn.Module, prefix: str = "", dtype: str = "float32") -> Any:
        """Fill every parameter of `model` from the tensor `prefix` + its name; returns it in `dtype`, ready to run."""
        import torch

        for name, parameter in model.named_parameters():
            self._fill(parameter.data, prefix + name)
        return model.to(getattr(torch, dtype)).eval()

    def finish(self, unused: Callable[[str], bool] = lambda name: False) -> None:
        """Raises CheckpointError if a tensor was not taken and is not known to be unused."""
        unknown = sorted(name for name in self._left if not unused(name))
        if unknown:
            raise CheckpointError(f"{self._where} holds {unknown[0]!r}, which the reference does not know")

    def _stored(self, name: str) -> FileTensor:
        if name not in self._left:
            raise CheckpointError(f"{self._where} lacks the tensor {name!r}; is this the right family for it?")
        return self._left[name]

    def _fill(self, value: torch.Tensor, name: str) -> None:
        """Read a tensor into `value`, block by block."""
        import torch

        stored = self._stored(name)
        if stored.dims != tuple(value.shape) or not stored.dtype.is_floating_point():
            raise CheckpointError(
                f"{self._where}: tensor {name!r} is {stored.dtype} {list(stored.dims)}, the reference needs "
                f"floats of shape {list(value.shape)}"
            )
        rows = value if stored.dims else value[None]
        start = 0
        for block in stored.blocks():
            piece = torch.from_numpy(np.atleast_1d(np.array(to_float32(block))))
            rows[start : start + len(piece)].copy_(piece)
            start += len(piece)
        del self._left[name]
