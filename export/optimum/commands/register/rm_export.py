"""`optimum-cli export reward ...`: the rm-export command inside Optimum, through its plug-in namespace.

Optimum imports every file in optimum.commands.register (a PEP 420 namespace: no __init__.py here) when its CLI
starts, so this one imports nothing of ours until the command runs.
"""

from __future__ import annotations

import argparse
import sys

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class RewardExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # optimum is untyped
    """Hands every argument after `reward` to rm-export."""

    COMMAND = CommandInfo(name="reward", help="Export reward models to ONNX bundles (rm-export).")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Take all arguments as they are, --help too: with no prefix character, argparse sees no options."""
        parser.prefix_chars = "\0"
        parser.add_argument("arguments", nargs=argparse.REMAINDER)

    def run(self) -> None:
        """Run rm-export and exit with its status."""
        from rm_export.cli import main

        sys.exit(main(self.args.arguments))


REGISTER_COMMANDS = [(RewardExportCommand, ExportCommand)]
