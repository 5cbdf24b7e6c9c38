"""A bundle's graphs -> TensorRT plans inside the bundle, through Polygraphy's loaders.

TensorRT 11 is strongly typed: what the ONNX says is what runs, so nothing is decided here but shapes and how long the
builder may search. `tensorrt` is taken where it is installed, else `tensorrt_rtx`, which compiles without a GPU too.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from rm_export.bundle import HashedFile, Progress, clear_dead_stages, write_file
from rm_export.engine_failures import build_failure
from rm_export.engine_layers import compiled_layers, network_layers
from rm_export.engine_profiles import Bucket, Profile, default_buckets, profiles_for
from rm_export.engine_progress import progress_monitor
from rm_export.errors import ExportError
from rm_export.polygraphy_log import PolygraphyLog, caught_log
from rm_export.publish import publish
from rm_runtime.bundle import Bundle, open_bundle
from rm_runtime.engines.cuda import gpu_capability
from rm_runtime.engines.tensorrt_plans import compute_capability, installed_package
from rm_runtime.manifest import EnginePlan, FileRecord, Manifest

ENGINES = "engines"


@dataclass(frozen=True)
class EngineOptions:
    """How engines are built.

    buckets: shapes to take, none = from the bundle's prompt limit. level: TensorRT's builder optimisation level, 0 to
    5, None = its default. weight_streaming: weights may stay in host memory. strip: leave the weights out of the plan;
    it is then refitted from the graph when loaded. timing_cache: a file to read and to add to, None = in the
    user's cache folder. capabilities: GPUs to compile for, such as "8.9" (tensorrt_rtx only), none = all it runs on.
    """

    buckets: tuple[Bucket, ...] = ()
    level: int | None = None
    weight_streaming: bool = False
    strip: bool = False
    timing_cache: Path | None = None
    capabilities: tuple[str, ...] = ()


def build_engines(path: Path, options: EngineOptions, progress: Progress) -> tuple[EnginePlan, ...]:
    """Compile every graph of the bundle and put the plans into it; those of the same package and GPU are replaced.

    Raises ExportError, in one line, if the bundle is written for another target, no TensorRT is installed, or it fails.
    """
    bundle = open_bundle(path)
    require_tensorrt_target(bundle)
    package = installed_package()
    if package is None:
        raise ExportError("no TensorRT is installed; pip install 'rm-export[tensorrt]', or tensorrt-rtx for RTX GPUs")
    version: str = import_module(package).__version__
    _check_capabilities(package, options.capabilities)
    capability = ",".join(options.capabilities) or compute_capability(package)
    key = f"{package}-{version}-{capability or 'any'}".replace(",", "-")
    clear_dead_stages(bundle.path, ENGINES)
    stage = bundle.path / f".{ENGINES}.partial-{os.getpid()}"
    stage.mkdir()
    try:
        plans: list[EnginePlan] = []
        records: dict[str, FileRecord] = {}
        for role, graph in bundle.manifest.graphs.items():
            profiles = profiles_of(bundle, role, options)
            files = _write(compile_graph(package, bundle.graph_path(role), profiles, options, progress), role, stage)
            records |= {f"{ENGINES}/{key}/{name}": record for name, record in files.items()}
            plans.append(
                EnginePlan(
                    graph=role,
                    graph_sha256=bundle.manifest.files[graph].sha256,
                    runtime=package,
                    version=version,
                    compute_capability=capability,
                    stripped=options.strip,
                    file=f"{ENGINES}/{key}/{role}.plan",
                    profiles=profiles,
                )
            )
        _put(bundle, key, stage, plans, records)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return tuple(plans)


def _check_capabilities(package: str, capabilities: Sequence[str]) -> None:
    wrong = next((text for text in capabilities if not re.fullmatch(r"\d+\.\d", text)), None)
    if wrong is not None:
        raise ExportError(f"compute capability {wrong!r}: write it as in 8.9")
    if capabilities and package == "tensorrt":
        raise ExportError("TensorRT builds for the GPU that is here; only tensorrt-rtx takes --compute-capability")


def require_tensorrt_target(bundle: Bundle) -> None:
    """Raises ExportError for a bundle in another dialect."""
    target = bundle.manifest.target
    if target != "tensorrt":
        raise ExportError(f"{bundle.path} is written for {target}; export it with --target tensorrt to build engines")


def profiles_of(bundle: Bundle, role: str, options: EngineOptions) -> tuple[Profile, ...]:
    """The shapes that the engine of this graph takes."""
    limit = bundle.manifest.prompt.max_length
    return profiles_for(role, options.buckets or default_buckets(limit), limit)


def timing_cache_of(package: str, options: EngineOptions) -> str | None:
    """The file that keeps how long tactics took, from build to build; None for TensorRT-RTX, which times nothing.

    TensorRT itself leaves out entries of another version or GPU.
    """
    if package != "tensorrt":
        return None
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rm-export"
    if options.timing_cache is None:
        folder.mkdir(parents=True, exist_ok=True)
    return str(options.timing_cache or folder / "tensorrt.timing")


@dataclass(frozen=True)
class Compiled:
    """A graph compiled by TensorRT. plan: its buffer. log: what TensorRT and Polygraphy said, line by line.

    layers: as TensorRT parsed the graph, and as it compiled it where there is a GPU to ask.
    """

    plan: Any
    layers: Mapping[str, Any]
    log: Sequence[str]


def compile_graph(
    package: str, graph: Path, profiles: Sequence[Profile], options: EngineOptions, progress: Progress
) -> Compiled:
    """Compile one ONNX file with `package`. Raises ExportError, in one line, if TensorRT cannot."""
    trt: Any = import_module(package)
    with _polygraphy(package) as (backend, logger, log):
        from polygraphy.exception import PolygraphyException

        try:
            typed = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")  # later versions know nothing else
            parsed = backend.network_from_onnx_path(str(graph), strongly_typed=typed or None)
            builder, network, parser = backend.set_decomposable_attentions(parsed)
            layers = network_layers(network)
            config = _config(trt, package, backend, profiles, options, progress)
            cache = timing_cache_of(package, options)
            plan = backend.engine_bytes_from_network((builder, network, parser), config, save_timing_cache=cache)
        except PolygraphyException:
            raise build_failure(package, trt.__version__, graph.name, log.errors) from None
        except (RuntimeError, TypeError) as error:  # what the bindings make of a null pointer
            raise build_failure(package, trt.__version__, graph.name, [*log.errors, str(error)]) from None
        compiled = compiled_layers(trt, logger, plan) if gpu_capability() else None
    return Compiled(plan, {"parsed": layers, "compiled": compiled}, log.lines)


def _write(compiled: Compiled, role: str, folder: Path) -> dict[str, FileRecord]:
    plan = HashedFile(folder / f"{role}.plan")
    plan.write(memoryview(compiled.plan))
    log = "".join(f"{line}\n" for line in compiled.log)
    return {
        f"{role}.plan": plan.close(),
        f"{role}.log": write_file(folder, f"{role}.log", log.encode()),
        f"{role}.layers.json": write_file(
            folder, f"{role}.layers.json", json.dumps(compiled.layers, indent=1).encode()
        ),
    }


def _config(
    trt: Any,
    package: str,
    backend: Any,
    profiles: Sequence[Profile],
    options: EngineOptions,
    progress: Progress,
) -> Any:
    shapes = []
    for profile in profiles:
        shape = backend.Profile()
        for name, (smallest, usual, largest) in profile.items():
            shape.add(name, min=smallest, opt=usual, max=largest)
        shapes.append(shape)
    cache = timing_cache_of(package, options)
    wanted: dict[str, Any] = {
        "profiles": shapes,
        "builder_optimization_level": options.level,
        "weight_streaming": options.weight_streaming,
        "strip_plan": options.strip,
        "load_timing_cache": cache if cache and os.path.exists(cache) else None,
        "progress_monitor": progress_monitor(trt, progress),
    }
    if package == "tensorrt":
        return backend.CreateConfig(**wanted)
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

    capabilities = [tuple(map(int, text.split("."))) for text in options.capabilities]
    return CreateConfigRTX(compute_capabilities=capabilities or None, **wanted)


@contextmanager
def _polygraphy(package: str) -> Iterator[tuple[Any, Any, PolygraphyLog]]:
    """Polygraphy's TensorRT backend, set to this package, its TensorRT logger, and its log."""
    from polygraphy import config

    config.USE_TENSORRT_RTX = package == "tensorrt_rtx"  # read when its backend is first imported
    with warnings.catch_warnings(), caught_log() as log:
        warnings.simplefilter("ignore")  # about optional packages, and Polygraphy's own use of TensorRT
        from polygraphy.backend import trt as backend
        from polygraphy.backend.trt.util import get_trt_logger

        yield backend, get_trt_logger(), log


def _put(bundle: Bundle, key: str, stage: Path, plans: Sequence[EnginePlan], records: Mapping[str, FileRecord]) -> None:
    """Move the staged folder to engines/`key` and list it."""
    place = bundle.path / ENGINES / key
    old = {name for name in bundle.manifest.files if name.startswith(f"{ENGINES}/{key}/")}

    def put() -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(exist_ok=True)
        stage.rename(place)

    def listed(manifest: Manifest) -> Manifest:
        others = tuple(plan for plan in manifest.engines if plan.file not in old)
        return replace(manifest, engines=(*others, *plans))

    def forgotten(manifest: Manifest) -> Manifest:
        return replace(manifest, engines=tuple(plan for plan in manifest.engines if plan.file not in old))

    publish(bundle, old, put, records, forgotten, listed)


def trtexec_command(bundle: Bundle, role: str, options: EngineOptions) -> str:
    """What one would type to build the same engine with TensorRT's own tool."""
    parts = ["trtexec", f"--onnx={bundle.graph_path(role)}", "--stronglyTyped", f"--saveEngine={role}.plan"]
    for number, profile in enumerate(profiles_of(bundle, role, options)):
        shapes = {
            which: ",".join(f"{name}:{'x'.join(map(str, sizes[place]))}" for name, sizes in profile.items())
            for place, which in enumerate(("minShapes", "optShapes", "maxShapes"))
        }
        parts += [f"--profile={number}", *(f"--{which}={text}" for which, text in shapes.items())]
    if options.level is not None:
        parts.append(f"--builderOptimizationLevel={options.level}")
    parts += ["--allowWeightStreaming"] * options.weight_streaming + ["--stripWeights"] * options.strip
    parts.append(f"--timingCacheFile={timing_cache_of('tensorrt', options)}")
    return shlex.join(parts)
