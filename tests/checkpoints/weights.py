"""Deterministic, spread-out weights."""

import zlib
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

Tensors = dict[str, np.ndarray]
DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}
DTYPES["bfloat16"] = np.dtype(ml_dtypes.bfloat16)


@dataclass
class Weights:
    """Named tensors drawn one by one; each has its own generator, so adding one leaves the others alone."""

    seed: int
    dtype: str
    """Storage dtype of what is drawn next; a mixed checkpoint changes it between parts."""
    tensors: Tensors = field(default_factory=dict)

    def normal(self, name: str, *shape: int, std: float = 1.0, mean: float = 0.0) -> None:
        generator = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        self.put(name, mean + std * generator.standard_normal(shape))

    def put(self, name: str, values: np.ndarray) -> None:
        assert name not in self.tensors, name
        self.tensors[name] = values.astype(np.float32).astype(DTYPES[self.dtype])

    def linear(self, name: str, inputs: int, outputs: int, *, bias: bool, gain: float = 1.3) -> None:
        """`name`.weight [outputs, inputs] with deviation gain/sqrt(inputs); with `bias` also `name`.bias."""
        self.normal(f"{name}.weight", outputs, inputs, std=gain / inputs**0.5)
        if bias:
            self.normal(f"{name}.bias", outputs, std=0.3)

    def rms_norm(self, name: str, size: int, *, offset: bool = False) -> None:
        """A scale around one; with `offset` (Gemma) the stored weight is the scale minus one."""
        self.normal(f"{name}.weight", size, std=0.25, mean=0.0 if offset else 1.0)

    def layer_norm(self, name: str, size: int) -> None:
        self.normal(f"{name}.weight", size, std=0.25, mean=1.0)
        self.normal(f"{name}.bias", size, std=0.3)
