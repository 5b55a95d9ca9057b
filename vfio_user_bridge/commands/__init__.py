# SPDX-License-Identifier: BSD-3-Clause
"""The commands, a file each: `NAME` and `SUMMARY`, what it can be told (`add_to`), and `run`.

`run` gives the exit status if that isn't 0.

All of them are read whenever the program starts, so what a command needs is imported in its `run`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Protocol

PROGRAM = "vfio-user-bridge"


def complain(line: str) -> None:
    """Say on stderr what is wrong."""
    sys.stderr.write(f"{PROGRAM}: {line}\n")


class Command(Protocol):
    """What such a file has, and `run`, or else commands of its own."""

    NAME: str
    SUMMARY: str

    def add_to(self, parser: argparse.ArgumentParser) -> None: ...


def add_commands(parser: argparse.ArgumentParser, commands: Iterable[Command]) -> None:
    """Let *parser* take one of *commands*, with what that can be told."""
    raw = argparse.RawDescriptionHelpFormatter
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in commands:
        summary = command.SUMMARY
        subparser = subparsers.add_parser(
            command.NAME,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=getattr(command, "EPILOG", None),
            formatter_class=raw,
            allow_abbrev=False,
        )
        command.add_to(subparser)
        if run := getattr(command, "run", None):
            subparser.set_defaults(run=run)
