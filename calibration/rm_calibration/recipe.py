"""The recipe: every number and every decision of a quantised export, as YAML a person can read, diff and edit.

The JSON schema beside this file is its definition. The same recipe gives the same text, byte for byte, and the
text the same recipe: floats are float32 values in their shortest decimal form, names stand in natural order.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_calibration.errors import CalibrationError
from rm_calibration.recipe_yaml import read_yaml, write_yaml
from rm_calibration.smoothing import LARGEST_EXPONENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

FORMAT_VERSION = 1

_LETTERS = "LKJIHGFEDCBA0abcdefghijkl"
"""One letter for each exponent -12 .. 12."""

_CHANNELS_A_LINE = 128


@dataclass(frozen=True)
class Source:
    """The checkpoint the numbers belong to."""

    id: str
    config_sha256: str


@dataclass(frozen=True)
class Calibration:
    """What was run to get them. digest: sha256 of the conversations; observer: the rule that clipped activations."""

    digest: str
    conversations: int
    tokens: int
    observer: str


@dataclass(frozen=True)
class Activation:
    """One quantised tensor, maybe read by several GEMMs. Numbers are float32 values.

    amax: where it is clipped, after smoothing. scale: of the int8 it becomes. observer: the rule behind amax.
    smoothing: for each channel e, int8; the tensor is divided by 2**e upstream. None: not smoothed (alpha 0.0).
    largest, largest_smoothed: max |x| of the calibration, before and after smoothing; nothing of int8 is computed from
    them, the scale of float8 is largest_smoothed / 448.
    """

    amax: float
    scale: float
    observer: str
    largest: float
    largest_smoothed: float
    alpha: float = 0.0
    smoothing: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("amax", "scale", "largest", "largest_smoothed", "alpha"):
            object.__setattr__(self, name, shortest_float32(getattr(self, name)))

    def exponents(self, channels: int) -> NDArray[np.int8]:
        """smoothing as int8 [channels], zeros if there is none. CalibrationError for another number of channels."""
        if self.smoothing is None:
            return np.zeros(channels, np.int8)
        if len(self.smoothing) != channels:
            raise CalibrationError(
                f"the recipe smooths {len(self.smoothing)} channels where the model has {channels}; "
                "it belongs to another checkpoint"
            )
        return np.array(self.smoothing, np.int8)


@dataclass(frozen=True)
class Clip:
    """How a weight's channels were clipped. mean_ratio: mean over the channels of clip / largest weight."""

    rule: str
    mean_ratio: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean_ratio", shortest_float32(self.mean_ratio))


@dataclass(frozen=True)
class Gemm:
    """One matrix product. input: the activation it reads. decision: "int8" or "float"; reason: why, one sentence.
    An fp8 bundle has float8 where its recipe says "int8".

    clip: None if it stays in float. sensitivity: its effect on the final scores alone, in standard deviations;
    None if that was not measured.
    """

    input: str
    decision: str
    reason: str
    clip: Clip | None = None
    sensitivity: float | None = None

    def __post_init__(self) -> None:
        if self.sensitivity is not None:
            object.__setattr__(self, "sensitivity", shortest_float32(self.sensitivity))


@dataclass(frozen=True)
class Embeddings:
    """The embedding tables. decision: "int8" (a scale a row, where the target can look integers up) or "float".

    sensitivity: the effect of int8 tables alone on the final scores, in standard deviations; None if not measured.
    """

    decision: str
    reason: str
    sensitivity: float | None = None

    def __post_init__(self) -> None:
        if self.sensitivity is not None:
            object.__setattr__(self, "sensitivity", shortest_float32(self.sensitivity))


@dataclass(frozen=True)
class Recipe:
    """Everything a replay needs besides the checkpoint.

    activations: by name. gemms: by the checkpoint's tensor name ("model.layers.0.self_attn.q_proj.weight").
    versions: tool -> version of what made it.
    """

    family: str
    source: Source
    calibration: Calibration
    activations: Mapping[str, Activation]
    gemms: Mapping[str, Gemm]
    versions: Mapping[str, str] = field(default_factory=dict)
    embeddings: Embeddings = Embeddings("float", "not measured")
    format: int = FORMAT_VERSION

    def to_yaml(self) -> str:
        """The text: fixed order of fields, natural order of names (layer 2 before layer 10), trailing newline."""
        document = {
            "format": self.format,
            "family": self.family,
            "source": vars(self.source),
            "versions": dict(sorted(self.versions.items())),
            "embeddings": vars(self.embeddings),
            "activations": _in_order(self.activations, _activation_to_document),
            "gemms": _in_order(self.gemms, _gemm_to_document),
            "calibration": vars(self.calibration),  # last: all of it is required, so a cut file is never a whole one
        }
        return write_yaml(document)

    @classmethod
    def from_yaml(cls, text: str | bytes, where: str = "recipe.yaml") -> Recipe:
        """Parse and check. Raises CalibrationError with one line that names the field and the value."""
        document = read_yaml(text, where)
        if not isinstance(document, dict):
            raise CalibrationError(f"{where} holds no recipe but a {type(document).__name__}; calibrate again")
        if document.get("format") != FORMAT_VERSION:
            raise CalibrationError(
                f"{where} has format version {document.get('format')!r}, this rm_calibration reads {FORMAT_VERSION}; "
                "install a matching rm-export or calibrate again"
            )
        _check_schema(document, where)
        activations = {
            name: Activation(**{**fields, "smoothing": _exponents_from_text(fields["smoothing"])})
            for name, fields in document["activations"].items()
        }
        gemms = {
            name: Gemm(**{**fields, "clip": None if fields["clip"] is None else Clip(**fields["clip"])})
            for name, fields in document["gemms"].items()
        }
        recipe = cls(
            family=document["family"],
            source=Source(**document["source"]),
            calibration=Calibration(**document["calibration"]),
            activations=activations,
            gemms=gemms,
            versions=document["versions"],
            embeddings=Embeddings(**document["embeddings"]),
        )
        recipe._check_inputs(where)
        return recipe

    def digest(self) -> str:
        """sha256 of the text, in hex: equal recipes have equal digests."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()

    def require_fit(self, family: str, config_sha256: str, gemms: Iterable[str]) -> None:
        """Raise CalibrationError unless this recipe was made for that checkpoint: family, config, names of GEMMs."""
        if self.family != family:
            raise CalibrationError(f"the recipe is for family {self.family}, the checkpoint is {family}; calibrate it")
        if self.source.config_sha256 != config_sha256:
            raise CalibrationError(
                f"the recipe was made for {self.source.id} with config {self.source.config_sha256[:12]}, this "
                f"checkpoint's is {config_sha256[:12]}; calibrate it, or use the recipe's own checkpoint"
            )
        odd = sorted(set(gemms) ^ set(self.gemms))
        if odd:
            lacking = "checkpoint" if odd[0] in self.gemms else "recipe"
            raise CalibrationError(f"the {lacking} has no GEMM {odd[0]!r} ({len(odd)} names differ); calibrate again")

    def _check_inputs(self, where: str) -> None:
        for name, gemm in self.gemms.items():
            if gemm.decision == "int8" and gemm.input not in self.activations:
                raise CalibrationError(
                    f"{where}: gemms/{name} reads activation {gemm.input!r}, which is not among the activations; "
                    'add it or set decision: "float"'
                )


def shortest_float32(value: float) -> float:
    """`value` rounded to float32, as the float whose decimal form is the shortest that means this float32."""
    single = np.float32(value)
    shortest = float(str(single))
    return shortest if np.float32(shortest) == single else float(single)


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe (draft 2020-12)."""
    text = resources.files("rm_calibration").joinpath("recipe.schema.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def _exponents_to_text(exponents: tuple[int, ...] | None) -> str | None:
    """A letter a channel, 128 channels a line: a long list that still shows in a diff what changed."""
    if exponents is None:
        return None
    letters = "".join(_LETTERS[exponent + LARGEST_EXPONENT] for exponent in exponents)
    lines = [letters[start : start + _CHANNELS_A_LINE] for start in range(0, len(letters), _CHANNELS_A_LINE)]
    return "\n".join(lines) + "\n"


def _exponents_from_text(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    return tuple(_LETTERS.index(letter) - LARGEST_EXPONENT for letter in text if letter != "\n")


def _activation_to_document(activation: Activation) -> dict[str, Any]:
    return {**vars(activation), "smoothing": _exponents_to_text(activation.smoothing)}


def _gemm_to_document(gemm: Gemm) -> dict[str, Any]:
    return {**vars(gemm), "clip": None if gemm.clip is None else vars(gemm.clip)}


def natural_order(names: Iterable[str]) -> list[str]:
    """Names sorted with their numbers as numbers: layer 2 before layer 10."""

    def natural(name: str) -> list[tuple[int, int, str]]:
        return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]

    return sorted(names, key=natural)


def _in_order(entries: Mapping[str, Any], to_document: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    return {name: to_document(entries[name]) for name in natural_order(entries)}


def _check_schema(document: Mapping[str, Any], where: str) -> None:
    from jsonschema import Draft202012Validator

    error = next(iter(sorted(Draft202012Validator(recipe_schema()).iter_errors(document), key=str)), None)
    if error is not None:
        place = "/".join(str(part) for part in error.absolute_path) or "the top level"
        reason = error.message if len(error.message) < 200 else error.message[:200] + "..."
        raise CalibrationError(f"{where}: at {place}: {reason}; mend it or calibrate again")
    number = _not_finite(document)
    if number is not None:
        raise CalibrationError(f"{where}: at {number}: not a finite number; mend it or calibrate again")


def _not_finite(document: Any, place: str = "") -> str | None:
    """Where a YAML .nan or .inf stands, which JSON schema's bounds let pass."""
    if isinstance(document, float) and not math.isfinite(document):
        return place
    if isinstance(document, dict):
        found = (_not_finite(value, f"{place}/{key}".lstrip("/")) for key, value in document.items())
        return next((each for each in found if each is not None), None)
    return None
