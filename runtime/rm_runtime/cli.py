"""rm-runtime: score and rank JSON lines with a bundle, serve it, measure its speed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rm_runtime.console import run_command
from rm_runtime.engines import ENGINES
from rm_runtime.load_options import with_load_options
from rm_runtime.serving.command import serve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_STREAM = "-"
_INPUT_HELP = "JSON lines or Parquet, or a folder of both."
_OUTPUT_HELP = "A run that was stopped goes on where it stood; a folder keeps what it has."


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=False)
@click.version_option(package_name="rm-export")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Score chats with an exported reward model.

    Exit status: 0; 1 if a line or the run failed; 2 for misuse.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    return run_command(cli, "rm-runtime", argv)


def _lines_command(command: Callable[..., int]) -> Callable[..., int]:
    """The argument and options of a command that turns lines into lines."""
    readable = click.Path(exists=True, allow_dash=True)
    writable = click.Path(allow_dash=True)
    options: list[Callable[..., Any]] = [
        click.argument("bundle", type=click.Path(path_type=Path)),
        click.option("-i", "--input", "source", type=readable, default=_STREAM, metavar="F|FOLDER|-", help=_INPUT_HELP),
        click.option("-o", "--output", type=writable, default=_STREAM, metavar="F|FOLDER|-", help=_OUTPUT_HELP),
        click.option("--column-prefix", default="", help="Of the columns that Parquet outputs get, such as rm_."),
        click.option("--verify", is_flag=True, help="Check the hash of every file of the bundle first."),
        with_load_options,
        click.option(
            "--engine-pool",
            type=click.Choice(["local", "ray"]),
            default="local",
            show_default=True,
            help="What answers files: an engine here, or actors of a Ray cluster.",
        ),
        click.option("--ray-address", metavar="HOST:PORT|auto|local", help="Default: RAY_ADDRESS, or else local."),
        click.option("--actors", type=click.IntRange(min=1), help="Of Ray. Default: as many as have room."),
        click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@_lines_command
def score(**arguments: Any) -> int:
    """Answer every JSON line with its scores.

    A line is {"messages": [...]}, or {"messages": [...], "responses": [...]} to rank answers. A line that
    fails gives {"error": ..., "line": n} in its place.
    """
    return _answer(ranking=False, **arguments)


@cli.command()
@_lines_command
def rank(**arguments: Any) -> int:
    """Answer every JSON line with the ranks of its answers.

    A line is {"messages": [...], "responses": [...]}, or for PairRM {"input": ..., "candidates": [...]}. A
    line that fails gives {"error": ..., "line": n} in its place.
    """
    return _answer(ranking=True, **arguments)


def _answer(
    source: str, output: str, engine_pool: str, ray_address: str | None, actors: int | None, **arguments: Any
) -> int:
    from rm_runtime.answering import RayOptions, answer_folder, answer_one_file, answer_stream

    if engine_pool != "ray" and (ray_address, actors) != (None, None):
        raise click.UsageError("--ray-address and --actors belong to --engine-pool ray")
    pool = RayOptions(ray_address, actors) if engine_pool == "ray" else None
    if source != _STREAM and Path(source).is_dir():
        if output == _STREAM or (Path(output).exists() and not Path(output).is_dir()):
            raise click.UsageError(f"-i {source} is a folder, so -o must name one too")
        return answer_folder(source=Path(source), output=Path(output), pool=pool, **arguments)
    if Path(output).is_dir():
        raise click.UsageError(f"-o {output} is a folder, so -i must name one too")
    plain = output != _STREAM and (Path(output).is_file() or not Path(output).exists())  # not a pipe, not /dev/null
    if plain and source != _STREAM and Path(source).is_file():
        return answer_one_file(source=Path(source), output=Path(output), pool=pool, **arguments)
    if pool is not None:
        raise click.UsageError("--engine-pool ray answers files into files; name them with -i and -o")
    return answer_stream(source=source, output=output, **arguments)


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option(
    "--engine",
    "engines",
    type=click.Choice(["auto", "all", *ENGINES]),
    multiple=True,
    default=["auto"],
    show_default=True,
    help="May be repeated; all: every engine that is installed.",
)
@click.option(
    "--vs", "versus", type=click.Choice(["hf"]), help="Also the checkpoint in transformers, float32 and bfloat16."
)
@click.option("--checkpoint", metavar="DIR|HUB_ID", help="Of --vs hf. Default: what the bundle was exported from.")
@click.option(
    "--reference-batch",
    "reference_batch_rows",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Of --vs hf: rows at once, in the order they come.",
)
@click.option(
    "--scenario",
    "scenarios",
    type=click.Choice(["single-stream", "offline", "server"]),
    multiple=True,
    help="May be repeated. Default: all three.",
)
@click.option("--queries", type=click.IntRange(min=1), default=128, show_default=True, help="Rows to measure with.")
@click.option(
    "--warmup", type=click.IntRange(min=0), default=8, show_default=True, help="Rows run before, after the longest one."
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Of offline; the median counts."
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Of server, a second. Default: searched.")
@click.option(
    "--p99-ms",
    type=click.FloatRange(min=0, min_open=True),
    default=1000.0,
    show_default=True,
    help="Of server: 99 % of answers come within it.",
)
@click.option("--chats", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="F.jsonl")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Default: all cores that affinity and CPU quota grant.")
@click.option("--device", metavar="cpu|cuda|cuda:N", help="Default: what the bundle was exported for.")
@click.option("--batch-tokens", type=click.IntRange(min=1), help="Default: as score takes it.")
@click.option("--share-prefixes/--no-share-prefixes", default=True, show_default=True, help="Of the bundle's engines.")
@click.option(
    "--url",
    "urls",
    multiple=True,
    metavar="http://HOST:PORT",
    help="A server of the KServe protocol v2, rm-runtime serve or Triton; may be repeated, and stand beside a bundle.",
)
@click.option("--model", help="Of --url. Default: the only one there that answers chats.")
@click.option(
    "--connections", type=click.IntRange(min=1), default=16, show_default=True, help="Of --url: requests at once."
)
@click.option("--one-at-a-time", is_flag=True, help="No two contenders open at once: for models that fill the memory.")
@click.option("--json", "report_path", type=click.Path(dir_okay=False, path_type=Path), metavar="F.json")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="F.svg|F.html")
@click.option(
    "--compare",
    type=click.Path(dir_okay=False, path_type=Path),
    nargs=2,
    metavar="A.json B.json",
    help="Nothing is run.",
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def bench(bundle: Path | None, compare: tuple[Path, Path] | None, **arguments: Any) -> int:
    """Measure latency, throughput, load time and memory of a bundle, or with --url of a server.

    Every contender runs in a process of its own, on the same rows, in turns with the others. Times are from token
    ids to scores. Lengths of the built-in chats are those of real ones; --chats takes your own.
    """
    if (bundle is None and not arguments["urls"]) == (compare is None):
        raise click.UsageError("either a bundle or --url to measure, or --compare with two reports")
    if compare is not None:
        from rm_runtime.bench.comparison import comparison_lines, read_report

        for line in comparison_lines(*map(read_report, compare)):
            click.echo(line)
        return 0
    return _measure(bundle, **arguments)


cli.add_command(serve)


def _measure(bundle: Path | None, report_path: Path | None, plot: Path | None, **arguments: Any) -> int:
    """Returns the exit status: 1 if a contender that was named could not be measured."""
    import json

    from rm_runtime.bench.measure import SCENARIOS, BenchSettings, bench
    from rm_runtime.bench.plot import check_suffix, write_plot
    from rm_runtime.bench.table import report_lines

    if plot is not None:
        check_suffix(plot)
    for path in (report_path, plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise click.UsageError(f"{path}: there is no folder {path.parent}")
    chosen = arguments.pop("scenarios") or SCENARIOS
    settings = BenchSettings(scenarios=tuple(name for name in SCENARIOS if name in chosen), **arguments)
    report = bench(bundle, settings, on_step=_steps(sys.stderr.isatty()))
    if report_path is not None:
        report_path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if plot is not None:
        write_plot(report, plot)
    for line in report_lines(report):
        click.echo(line)
    failures = [contender for contender in report["contenders"] if contender["failure"]]
    return 1 if failures and "all" not in settings.engines else 0


def _steps(shown: bool) -> Callable[[str], None]:
    return lambda step: click.echo(f"{step} ...", err=True) if shown else None
