"""rm-export engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rm_export.engine import EngineOptions


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--shapes", metavar="BxL,...", help="Largest batch and length of each profile (default: by the prompts).")
@click.option("--builder-level", type=click.IntRange(0, 5), help="How long TensorRT searches (default: its own).")
@click.option(
    "--timing-cache", type=click.Path(path_type=Path), metavar="FILE", help="Default: the user's cache folder."
)
@click.option("--weight-streaming", is_flag=True, help="Weights may stay in host memory while it runs.")
@click.option("--strip", is_flag=True, help="Leave the weights out of the plan; it is refitted when loaded.")
@click.option("--compute-capability", multiple=True, metavar="8.9", help="TensorRT-RTX: only for these GPUs.")
@click.option("--list", "listed", is_flag=True, help="List the bundle's engines; build nothing.")
@click.option("--print-trtexec", is_flag=True, help="Print the equivalent trtexec commands; build nothing.")
def engine(bundle: Path, listed: bool, print_trtexec: bool, **arguments: Any) -> None:
    """Compile a bundle's graphs into TensorRT engines, stored in the bundle.

    For bundles exported with --target tensorrt. TensorRT needs the GPU it builds for; TensorRT-RTX builds without one.
    """
    from rm_export.engine import EngineOptions, require_tensorrt_target, trtexec_command
    from rm_export.engine_profiles import parse_buckets
    from rm_runtime.bundle import open_bundle

    opened = open_bundle(bundle)
    if listed:
        for plan in opened.manifest.engines:
            size = opened.manifest.files[plan.file].size
            click.echo(
                f"{plan.file}  {plan.runtime} {plan.version}, {plan.compute_capability or 'any GPU'}, {size} bytes"
            )
        return
    require_tensorrt_target(opened)
    limit = opened.manifest.prompt.max_length
    options = EngineOptions(
        buckets=parse_buckets(arguments["shapes"], limit) if arguments["shapes"] else (),
        level=arguments["builder_level"],
        weight_streaming=arguments["weight_streaming"],
        strip=arguments["strip"],
        timing_cache=arguments["timing_cache"],
        capabilities=arguments["compute_capability"],
    )
    if print_trtexec:
        for role in opened.manifest.graphs:
            click.echo(trtexec_command(opened, role, options))
        return
    _build(bundle, options)


def build_where_installed(bundle: Path) -> None:
    """Compile a bundle as `rm-export engine` does by default; where there is no TensorRT, say how to."""
    from rm_export.engine import EngineOptions
    from rm_runtime.engines.tensorrt_plans import installed_package

    if installed_package() is None:
        click.echo(f"no TensorRT is installed here; compile it where it will run: rm-export engine {bundle}")
    else:
        _build(bundle, EngineOptions())


def _build(bundle: Path, options: EngineOptions) -> None:
    from rm_export.engine import build_engines
    from rm_export.progress import ConsoleProgress

    with ConsoleProgress() as progress:
        plans = build_engines(bundle, options, progress)
    for plan in plans:
        click.echo(f"{plan.graph} engine: {bundle / plan.file}")
