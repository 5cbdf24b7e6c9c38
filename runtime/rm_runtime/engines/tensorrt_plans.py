"""Which compiled plan of a bundle may be used here. A plan holds executable code: nothing unchecked is deserialised."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec

from rm_runtime.bundle import Bundle
from rm_runtime.engines.cuda import gpu_capability
from rm_runtime.errors import BundleError, EngineError
from rm_runtime.manifest import EnginePlan

PACKAGES = ("tensorrt", "tensorrt_rtx")
"""For data-centre GPUs, and for RTX GPUs; the first that is installed is taken."""

_REBUILD = "run `rm-export engine` on this machine"


def installed_package() -> str | None:
    return next((package for package in PACKAGES if find_spec(package) is not None), None)


def compute_capability(package: str) -> str | None:
    """Of the GPU that a plan built here is for; None where the package's plans run on any it supports."""
    return gpu_capability() if package == "tensorrt" else None


def usable_plan(bundle: Bundle, role: str, device: int = 0) -> EnginePlan:
    """The plan of that graph for this package, version and GPU (CUDA's number `device`).

    Raises EngineError if there is none.
    """
    package = installed_package()
    if package is None:
        raise EngineError("no TensorRT is installed; pip install 'rm-export[tensorrt]'")
    plans = [plan for plan in bundle.manifest.engines if plan.graph == role]
    if not plans:
        raise EngineError(f"{bundle.path} has no compiled engine of its {role} graph; {_REBUILD}")
    version: str = import_module(package).__version__
    fitting = [plan for plan in plans if (plan.runtime, plan.version) == (package, version)]
    if not fitting:
        raise EngineError(f"{bundle.path} has engines for {_listed(plans)}; this is {package} {version}: {_REBUILD}")
    capability = gpu_capability(device)
    fitting = [plan for plan in fitting if _runs_on(plan, capability)]
    if not fitting:
        raise EngineError(
            f"{bundle.path} has engines for {_listed(plans)}; this GPU has compute capability {capability}: {_REBUILD}"
        )
    graph = bundle.manifest.files[bundle.manifest.graphs[role]]
    plan = next((plan for plan in fitting if plan.graph_sha256 == graph.sha256), None)
    if plan is None:
        raise EngineError(f"{bundle.path}: its engines were built from another {role} graph; {_REBUILD}")
    return plan


def checked_bytes(bundle: Bundle, plan: EnginePlan) -> bytes:
    """The plan's file, read once and hashed before anything else reads it.

    Raises BundleError if it is not the one that was built.
    """
    content, record = (bundle.path / plan.file).read_bytes(), bundle.manifest.files.get(plan.file)
    if record is None or hashlib.sha256(content).hexdigest() != record.sha256:
        raise BundleError(f"{bundle.path / plan.file} does not match its sha256; {_REBUILD}")
    return content


def fitting_profile(plan: EnginePlan, shapes: Mapping[str, Sequence[int]]) -> int:
    """The number of the smallest profile that takes these input shapes. Raises EngineError if none does."""
    for number, profile in enumerate(plan.profiles):
        if all(_within(shape, profile[name]) for name, shape in shapes.items()):
            return number
    longest = {name: shape[2] for name, shape in plan.profiles[-1].items()}
    raise EngineError(
        f"no profile of the compiled engine takes {_in_words(shapes)} (the longest: {_in_words(longest)}); "
        "build it with larger shapes: rm-export engine --shapes"
    )


def _runs_on(plan: EnginePlan, capability: str | None) -> bool:
    return plan.compute_capability is None or (capability or "") in plan.compute_capability.split(",")


def _within(shape: Sequence[int], profile: Sequence[Sequence[int]]) -> bool:
    smallest, _, largest = profile
    return len(shape) == len(largest) and all(
        low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)
    )


def _in_words(shapes: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())


def _listed(plans: Sequence[EnginePlan]) -> str:
    return ", ".join(
        dict.fromkeys(f"{plan.runtime} {plan.version} ({plan.compute_capability or 'any GPU'})" for plan in plans)
    )
