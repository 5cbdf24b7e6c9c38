"""rm-export: checkpoint -> bundle, and what one does with a bundle before serving it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rm_export.engine_command import build_where_installed, engine
from rm_export.families import FAMILIES
from rm_export.triton.command import triton
from rm_runtime.console import run_command

if TYPE_CHECKING:
    from rm_export.quantisation import Quantisation

_PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "w8", "w4")
_SHORT = ("fp16", "bf16", "int8")
_HUB_IDS = "armorm, grm, pairrm, pair-pm and dpa-rm know their hub ids; scalar and auto need --checkpoint."


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=False)
@click.version_option(package_name="rm-export")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Export reward models to ONNX bundles.

    rm-export FAMILY writes a bundle; FAMILY is armorm, grm, pairrm, pair-pm, dpa-rm, scalar or auto.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    return run_command(cli, "rm-export", argv)


def _export_options(command: Callable[..., None]) -> Callable[..., None]:
    options = [
        click.option("--checkpoint", metavar="DIR|HUB_ID", help="Checkpoint to export (default: the family's own)."),
        click.option("--revision", metavar="R", help="Branch, tag or commit of a hub id."),
        click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Bundle folder to write."),
        click.option("--precision", type=click.Choice(_PRECISIONS), help="Default: fp32."),
        *(click.option(f"--{name}", is_flag=True, help=f"Same as --precision {name}.") for name in _SHORT),
        click.option("--target", type=click.Choice(["cpu", "cuda", "tensorrt"]), default="cpu", show_default=True),
        click.option(
            "--calibration",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="F.jsonl|F.parquet",
            help="int8, fp8, w8, w4: conversations to calibrate and judge on (default: a built-in set).",
        ),
        click.option(
            "--calibration-tokens",
            type=click.IntRange(min=1),
            metavar="N",
            help="Ids to calibrate on, and as many to judge on (default: 8,192 to 65,536, by the model's size).",
        ),
        click.option(
            "--recipe",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="F.yaml",
            help="int8, fp8: replay this recipe instead of calibrating.",
        ),
        click.option(
            "--max-flip-rate",
            type=click.FloatRange(0, 1),
            default=0.01,
            show_default=True,
            help="int8, fp8: share of clear preferences that may be decided otherwise than in float.",
        ),
        click.option("--backbone", metavar="DIR|HUB_ID", help="PairRM: where its backbone's config and tokenizer are."),
        click.option("--max-length", type=click.IntRange(min=1), help="Token ids a prompt may have."),
        click.option("--truncation-side", type=click.Choice(["left", "right"]), help="Where longer prompts are cut."),
        click.option(
            "--chat-template",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Jinja template to use instead of the checkpoint's.",
        ),
        click.option(
            "--add-special-tokens/--no-add-special-tokens",
            default=None,
            help="Whether the tokenizer adds its own tokens (BOS) to the rendered text.",
        ),
        click.option("--date", default="2024-07-26", show_default=True, help="The date that chat templates see."),
        click.option("--score-label", type=click.IntRange(min=0), default=0, help="Label that is the score (scalar)."),
        click.option(
            "--build-engine/--no-build-engine",
            default=True,
            help="Target tensorrt: compile the bundle too, if TensorRT is installed.",
        ),
        click.option("--force", is_flag=True, help="Replace an existing bundle."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _export(family: str, **arguments: Any) -> None:
    from rm_export.exporter import export_checkpoint
    from rm_export.families import family as family_named
    from rm_export.families import recognise
    from rm_export.hub import open_checkpoint_at
    from rm_export.options import Options
    from rm_export.progress import ConsoleProgress

    precision = _chosen_precision(arguments)
    name = arguments["checkpoint"]
    if name is None:
        name = family_named(family).HUB_ID if family != "auto" else None
        if name is None:
            raise click.UsageError(f"{family} has no default checkpoint: pass --checkpoint DIR|HUB_ID")
    template: Path | None = arguments["chat_template"]
    options = Options(
        max_length=arguments["max_length"],
        truncation_side=arguments["truncation_side"],
        chat_template=template.read_text("utf-8") if template else None,
        add_special_tokens=arguments["add_special_tokens"],
        date=arguments["date"],
        score_label=arguments["score_label"],
        backbone=arguments["backbone"],
    )
    checkpoint = open_checkpoint_at(name, arguments["revision"])
    if family == "auto":
        family = recognise(checkpoint).NAME
    output = arguments["output"] or Path(f"{Path(name).name}-{precision}")
    with ConsoleProgress() as progress:
        export_checkpoint(
            checkpoint,
            output,
            family=family,
            precision=precision,
            target=arguments["target"],
            options=options,
            quantisation=_quantisation(arguments) if precision in ("int8", "fp8", "w8", "w4") else None,
            force=arguments["force"],
            progress=progress,
        )
    click.echo(f"{family} bundle written to {output}; look at it: rm-export inspect {output}")
    if arguments["target"] == "tensorrt" and arguments["build_engine"]:
        build_where_installed(output)


def _quantisation(arguments: dict[str, Any]) -> Quantisation:
    from rm_calibration.conversations import read_conversations
    from rm_calibration.recipe import Recipe
    from rm_export.calibrate import CalibrationOptions
    from rm_export.quantisation import Quantisation

    recipe: Path | None = arguments["recipe"]
    calibration: Path | None = arguments["calibration"]
    if recipe and calibration:
        raise click.UsageError("--recipe replays its own calibration: pass it or --calibration, not both")
    return Quantisation(
        recipe=Recipe.from_yaml(recipe.read_bytes(), str(recipe)) if recipe else None,
        examples=read_conversations(calibration) if calibration else None,
        options=CalibrationOptions(
            max_flip_rate=arguments["max_flip_rate"], max_tokens=arguments["calibration_tokens"]
        ),
    )


def _chosen_precision(arguments: dict[str, Any]) -> str:
    named = [name for name in _SHORT if arguments[name]]
    if arguments["precision"]:
        named.append(arguments["precision"])
    if len(set(named)) > 1:
        raise click.UsageError(f"one precision at a time: {' or '.join(sorted(set(named)))}")
    return named[0] if named else "fp32"


def _add_family(name: str) -> None:
    what = f"an {name}" if name[0] in "aeiou" else f"a {name}"
    help_text = "Export a checkpoint, its family recognised." if name == "auto" else f"Export {what} checkpoint."

    @cli.command(name, help=help_text, epilog=_HUB_IDS)
    @_export_options
    def command(**arguments: Any) -> None:
        _export(name, **arguments)


for _name in (*FAMILIES, "auto"):
    _add_family(_name)


cli.add_command(engine)
cli.add_command(triton)


@cli.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR")
def demo(output: Path) -> None:
    """Write the demo checkpoint: small, trained, ArmoRM-shaped; it ships with the package, no network is used."""
    from rm_export.demo import write_demo

    write_demo(output)
    click.echo(f"demo checkpoint written to {output}; export it: rm-export armorm --checkpoint {output} -o demo-bundle")


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Also check every file's sha256.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest instead.")
def inspect(bundle: Path, verify: bool, as_json: bool) -> None:
    """Show at one glance what a bundle is."""
    from rm_export.inspection import print_bundle
    from rm_runtime.bundle import open_bundle

    opened = open_bundle(bundle, verify=verify)
    if as_json:
        click.echo(opened.manifest.to_json(), nl=False)
    else:
        print_bundle(opened, hashes_checked=verify)


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--checkpoint", metavar="DIR|HUB_ID", help="What it was exported from (default: as the bundle says).")
@click.option("--revision", metavar="R", help="Branch, tag or commit of a hub id.")
@click.option("--backbone", metavar="DIR|HUB_ID", help="PairRM: where its backbone's config is.")
@click.option(
    "--conversations",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="F.jsonl",
    help="What to compare on (default: a built-in set).",
)
@click.option("--engine", default="auto", show_default=True, help="Engine that runs the bundle.")
@click.option("--device", metavar="cpu|cuda|cuda:N", help="Default: what the bundle was exported for.")
@click.option("--threads", type=click.IntRange(min=1), help="Default: all cores it may run on.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Default: into the bundle.")
def verify(bundle: Path, **arguments: Any) -> int:
    """Compare a bundle with the float32 torch reference; write parity.json and parity.html.

    Needs the extra `reference` (torch, transformers). Exit status 1 if a clear preference is flipped. --engine tensorrt
    is also compared with ONNX Runtime on the same bundle, output by output.
    """
    from rm_calibration.conversations import read_conversations
    from rm_export.hub import open_checkpoint_at
    from rm_export.options import Options
    from rm_export.progress import ConsoleProgress
    from rm_export.verify import compare_engines, verify_bundle
    from rm_runtime.bundle import open_bundle

    source = open_bundle(bundle).manifest.source
    name = arguments["checkpoint"] or source.id
    revision = arguments["revision"] or (source.revision if name == source.id else None)
    conversations = arguments["conversations"]
    examples = read_conversations(conversations) if conversations else None
    with ConsoleProgress() as progress:
        parity = verify_bundle(
            bundle,
            open_checkpoint_at(name, revision),
            examples,
            engine=arguments["engine"],
            threads=arguments["threads"],
            device=arguments["device"],
            output=arguments["output"],
            options=Options(backbone=arguments["backbone"]),
            on_row=progress.follow("running the reference", "rows"),
        )
    click.echo(parity.verdict)
    click.echo(f"written to {arguments['output'] or bundle}: parity.json, parity.html")
    if arguments["engine"] == "tensorrt":
        where = {name: arguments[name] for name in ("engine", "threads", "device")}
        for line in compare_engines(bundle, examples, **where).lines():
            click.echo(line)
    return 0 if parity.same_decisions else 1
