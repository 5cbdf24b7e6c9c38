"""rm-export triton."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rm_export.triton.options import BACKENDS, TritonOptions

if TYPE_CHECKING:
    from rm_export.triton.options import Gpus

_DEFAULTS = TritonOptions()


class _GpuList(click.ParamType[Any]):
    name = "gpus"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Gpus:
        if value == "all":
            return "all"
        if value == "none":
            return ()
        if not re.fullmatch(r"\d+(,\d+)*", value):
            self.fail(f"{value!r}: write all, none, or numbers as in 0,1", param, ctx)
        return tuple(int(number) for number in value.split(","))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="REPO")
@click.option("--name", help="Of the model that clients ask. Default: the bundle's folder.")
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    help="What runs the graph; python needs no other backend. Default: onnxruntime, or tensorrt for its bundles.",
)
@click.option("--gpus", type=_GpuList(), metavar="all|none|0,1", help="Default: all, none for bundles for the CPU.")
@click.option(
    "--instances",
    type=click.IntRange(min=1),
    default=_DEFAULTS.instances,
    show_default=True,
    help="Of the graph, on each GPU.",
)
@click.option(
    "--fronts",
    type=click.IntRange(min=1),
    default=_DEFAULTS.fronts,
    show_default=True,
    help="Python processes before it.",
)
@click.option("--max-batch", type=click.IntRange(min=1), default=_DEFAULTS.max_batch, show_default=True, help="Chats.")
@click.option(
    "--graph-batch",
    type=click.IntRange(min=1),
    default=_DEFAULTS.graph_batch,
    show_default=True,
    help="Rows; bounds what the graph's memory grows with.",
)
@click.option(
    "--queue-delay-us",
    type=click.IntRange(min=0),
    default=_DEFAULTS.queue_delay_us,
    show_default=True,
    help="That a request may wait for others to be joined with.",
)
@click.option("--queue-size", type=click.IntRange(min=1), help="Requests that may wait. Default: no bound.")
@click.option(
    "--queue-timeout-us", type=click.IntRange(min=1), help="Then a waiting request is refused. Default: never."
)
@click.option("--priorities", type=click.IntRange(min=0), default=_DEFAULTS.priorities, help="Levels; 1 goes first.")
@click.option("--threads", type=click.IntRange(min=1), help="Of an engine on the CPU. Default: all cores.")
@click.option("--engine", default=_DEFAULTS.engine, show_default=True, help="Of the backend python.")
@click.option("--batch-tokens", type=click.IntRange(min=1), help="Ids a batch may hold. Default: by kind and memory.")
@click.option("--model-version", type=click.IntRange(min=1), default=_DEFAULTS.model_version, show_default=True)
@click.option("--execution-env", metavar="PATH", help="EXECUTION_ENV_PATH of the Python models (conda-pack).")
@click.option("--force", is_flag=True, help="Replace an existing repository of this command.")
def triton(bundle: Path, output: Path, force: bool, **arguments: Any) -> None:
    """Write a bundle as a Triton model repository.

    docs/triton.md tells what each of its models does. Several repositories can be served at once: tritonserver takes
    --model-repository more than once.
    """
    from rm_export.triton.repository import write_repository

    options = TritonOptions(**arguments)
    written = write_repository(bundle, output, options, force)
    first, *others = written.models
    click.echo(f"{output}: ask {first}" + (f"; also {', '.join(others)}" if others else ""))
    if written.graph_batch is not None and written.graph_batch < options.graph_batch:
        click.echo(
            f"the graph is given {written.graph_batch} rows at once, the smallest batch of its profiles; for more, "
            f"compile profiles of one batch: rm-export engine {bundle} --shapes 16x128,16x512"
        )
