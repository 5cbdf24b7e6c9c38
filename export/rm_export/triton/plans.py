"""Which of a bundle's compiled plans Triton's TensorRT backend can load."""

from __future__ import annotations

from rm_export.errors import ExportError
from rm_runtime.bundle import Bundle
from rm_runtime.manifest import EnginePlan


def loadable_plans(bundle: Bundle) -> dict[str, EnginePlan]:
    """File name in the repository -> plan of the plain graph, one a GPU architecture, all of one TensorRT version.

    Raises ExportError if there is none: plans of TensorRT-RTX and plans without weights are not for Triton.
    """
    graph = bundle.manifest.files[bundle.manifest.graphs["plain"]]
    fresh = [
        plan
        for plan in bundle.manifest.engines
        if plan.graph == "plain" and plan.runtime == "tensorrt" and plan.graph_sha256 == graph.sha256
    ]
    whole = [plan for plan in fresh if not plan.stripped]
    if not whole:
        reason = "its plans hold no weights, compile without --strip" if fresh else "compile it first"
        raise ExportError(
            f"{bundle.path} has no TensorRT plan that Triton can load ({reason}): rm-export engine {bundle.path}"
        )
    newest = max((plan.version for plan in whole), key=_numbers)
    chosen = [plan for plan in whole if plan.version == newest]
    if len(chosen) == 1:
        return {"model.plan": chosen[0]}
    return {f"model_{plan.compute_capability}.plan": plan for plan in chosen}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
