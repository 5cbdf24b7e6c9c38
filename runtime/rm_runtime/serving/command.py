"""rm-runtime serve."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path
from typing import Any

import click

from rm_runtime.load_options import with_load_options
from rm_runtime.serving.limits import Limits

_DEFAULTS = Limits()
_ARGUMENTS = "rm_runtime.serving.arguments"


class _Serve(click.Command):
    """Keeps its arguments as they were given, for the worker."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)


@click.command(cls=_Serve)
@click.argument("bundles", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0: every interface; then use API keys.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option(
    "--grpc-port", type=click.IntRange(0, 65535), default=8001, show_default=True, help="gRPC's. 0: any that is free."
)
@click.option("--no-grpc", is_flag=True, help="HTTP alone.")
@click.option(
    "--api-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="API keys, one a line. Also read from the environment, RM_RUNTIME_API_KEYS. Default: nobody needs one.",
)
@click.option(
    "--max-body-bytes",
    type=click.IntRange(min=1),
    default=_DEFAULTS.max_body_bytes,
    show_default=True,
    help="Else 413.",
)
@click.option(
    "--max-rows", type=click.IntRange(min=1), default=_DEFAULTS.max_rows, show_default=True, help="A request. Else 413."
)
@click.option(
    "--max-requests",
    type=click.IntRange(min=1),
    default=_DEFAULTS.max_requests,
    show_default=True,
    help="At once. Else 429.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(min=1),
    default=_DEFAULTS.max_connections,
    show_default=True,
    help="Open at once. Else 503.",
)
@click.option(
    "--max-queue-rows",
    type=click.IntRange(min=1),
    default=_DEFAULTS.max_queue_rows,
    show_default=True,
    help="Waiting for a bundle. Else 429.",
)
@click.option(
    "--max-queue-tokens",
    type=click.IntRange(min=1),
    default=_DEFAULTS.max_queue_tokens,
    show_default=True,
    help="Waiting for a bundle. Else 429.",
)
@click.option(
    "--max-wait",
    "max_wait_seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=_DEFAULTS.max_wait_seconds,
    show_default=True,
    help="Seconds that a bundle's queue may be expected to take. Else 429.",
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=_DEFAULTS.timeout_seconds,
    show_default=True,
    help="Seconds a request has. Else 504.",
)
@click.option(
    "--drain",
    "drain_seconds",
    type=click.FloatRange(min=0),
    default=_DEFAULTS.drain_seconds,
    show_default=True,
    help="Seconds that requests in work have after SIGTERM. Else 503.",
)
@click.option(
    "--restarts",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Of a worker that died, until one was ready for a minute. Then the command ends with status 1.",
)
@click.option("--worker", type=int, nargs=2, hidden=True, help="Descriptors of the socket and of the supervisor.")
@click.option("--log-prompts", is_flag=True, help="Also log what clients send. Default: never.")
@with_load_options
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def serve(
    bundles: tuple[str, ...],
    host: str,
    port: int,
    grpc_port: int,
    no_grpc: bool,
    api_key_file: Path | None,
    log_prompts: bool,
    max_body_bytes: int,
    max_rows: int,
    max_requests: int,
    max_connections: int,
    max_queue_rows: int,
    max_queue_tokens: int,
    max_wait_seconds: float,
    timeout_seconds: float,
    drain_seconds: float,
    restarts: int,
    worker: tuple[int, int] | None,
    **load_options: Any,
) -> int:
    """Score over HTTP and gRPC until SIGTERM.

    A model is named after its bundle's folder, or NAME=BUNDLE; the first is the default. docs/serving.md tells what can
    be asked.
    """
    from rm_runtime.serving.logs import log_event, log_to_stderr
    from rm_runtime.serving.supervisor import listening, live_and_die_with, supervise, tell_ready

    named = _named(bundles)
    log_to_stderr()
    if worker is None:
        with listening(host, port) as listener:
            log_event("listening", host=host, port=listener.getsockname()[1])
            return supervise(listener, click.get_current_context().meta[_ARGUMENTS], restarts)
    listener, lifeline = (socket.socket(fileno=descriptor) for descriptor in worker)
    live_and_die_with(lifeline)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines are no JSON, and calls that fail are in ours
    limits = Limits(
        max_body_bytes=max_body_bytes,
        max_rows=max_rows,
        max_requests=max_requests,
        max_connections=max_connections,
        max_queue_rows=max_queue_rows,
        max_queue_tokens=max_queue_tokens,
        max_wait_seconds=max_wait_seconds,
        timeout_seconds=timeout_seconds,
        drain_seconds=drain_seconds,
    )
    try:
        from rm_runtime.loading import load
        from rm_runtime.serving.keys import read_keys
        from rm_runtime.serving.server import serve as run
        from rm_runtime.serving.service import Service

        if not no_grpc:
            from rm_runtime.serving.grpc.server import GrpcServer
    except ModuleNotFoundError as error:
        instead = ", or --no-grpc" if str(error.name).startswith(("grpc", "google")) else ""
        raise click.ClickException(
            f"serving needs the package {error.name}; pip install 'rm-export[serve]'{instead}"
        ) from None
    service = Service(named, partial(load, verify=True, **load_options), limits)
    keys = read_keys(api_key_file)
    grpc = None if no_grpc else GrpcServer(service, keys, host, grpc_port, log_prompts)
    run(service, listener, keys, log_prompts, partial(tell_ready, lifeline), grpc)
    return 0


def _named(bundles: tuple[str, ...]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for text in bundles:
        name, _, path = ("", "", text) if Path(text).is_dir() else text.rpartition("=")
        folder = Path(path)
        name = name or folder.resolve().name
        if name in named:
            raise click.UsageError(f"two bundles are called {name}; name one with NAME=BUNDLE")
        if not name or "/" in name:
            raise click.UsageError(f"{text}: a model's name may not be empty or hold a slash")
        named[name] = folder
    return named
