"""How every console command ends: one line on stderr, exit status 2 for misuse, 1 for failure."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from rm_runtime.errors import RewardModelError


def run_command(command: click.Command, name: str, argv: Sequence[str] | None = None) -> int:
    """Run a click command and return the exit status; errors become one line unless --debug is given."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        result = command.main(args=arguments, prog_name=name, standalone_mode=False)
    except click.UsageError as error:
        return _fail(name, f"{error.format_message()} (try {name} --help)", 2)
    except click.ClickException as error:
        return _fail(name, error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _fail(name, "interrupted", 130)
    except (RewardModelError, OSError, MemoryError) as error:
        if "--debug" in arguments:
            raise
        return _fail(name, _message(error), 1)
    except Exception as error:
        if "--debug" in arguments:
            raise
        return _fail(name, f"{type(error).__name__}: {_message(error)}; this is a defect, --debug shows where", 1)
    return result if isinstance(result, int) else 0


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _fail(name: str, message: str, status: int) -> int:
    click.echo(f"{name}: error: {message}", err=True)
    return status
