"""The options of every command that loads a bundle: what rm_runtime.load takes, by the same names."""

from __future__ import annotations

from collections.abc import Callable

import click

from rm_runtime.engines import ENGINES

_OPTIONS = (
    click.option(
        "--engine",
        type=click.Choice(["auto", *ENGINES]),
        default="auto",
        show_default=True,
        help="auto: the installed one that is fastest for this CPU and bundle.",
    ),
    click.option("--threads", type=click.IntRange(min=1), help="Default: all cores that affinity and CPU quota grant."),
    click.option("--device", metavar="cpu|cuda|cuda:N", help="Default: what the bundle was exported for."),
    click.option(
        "--batch-tokens",
        type=click.IntRange(min=1),
        help="Token ids a batch may hold, padding included. Default: by the kind of model and the memory left.",
    ),
    click.option(
        "--share-prefixes/--no-share-prefixes",
        default=True,
        show_default=True,
        help="Compute what rows have in common once, in a second graph, which takes memory of its own.",
    ),
    click.option(
        "--truncation",
        type=click.Choice(["cut", "error"]),
        default="cut",
        show_default=True,
        help="What happens to a prompt that is too long.",
    ),
    click.option(
        "--special-text",
        type=click.Choice(["token", "text", "error"]),
        default="token",
        show_default=True,
        help='What a typed "<|eot_id|>" is: that token as in the reference, plain text, or an error.',
    ),
)


def with_load_options(command: Callable[..., int]) -> Callable[..., int]:
    """The command with these options, first to last as they stand here."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
