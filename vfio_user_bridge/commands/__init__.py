# SPDX-License-Identifier: BSD-3-Clause
"""The commands, a file each: `NAME` and `SUMMARY`, what it can be told (`add_to`), and `run`.

`run` gives the exit status if that isn't 0.

A `DESCRIPTION` says more than the summary, an `EPILOG` has examples and what else is good to know;
the manual has both too. In them, a paragraph's first line like "examples:" is a heading.

All of them are read whenever the program starts, so what a command needs is imported in its `run`.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable
from typing import Protocol

PROGRAM = "vfio-user-bridge"
_PROSE = 80  # columns; longer lines are hard to read


def complain(line: str) -> None:
    """Say on stderr what is wrong."""
    sys.stderr.write(f"{PROGRAM}: {line}\n")


class Command(Protocol):
    """What such a file has, and `run`, or else commands of its own."""

    NAME: str
    SUMMARY: str

    def add_to(self, parser: argparse.ArgumentParser) -> None: ...


class HelpFormatter(argparse.HelpFormatter):
    """Leaves paragraphs as they are in which something is indented."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip("\n").split("\n\n")
        return "\n\n".join(
            paragraph
            if "\n " in f"\n{paragraph}"
            else textwrap.fill(paragraph, min(width, _PROSE), initial_indent=indent)
            for paragraph in paragraphs
        )


def add_commands(parser: argparse.ArgumentParser, commands: Iterable[Command]) -> None:
    """Let *parser* take one of *commands*, with what that can be told."""
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in commands:
        summary = command.SUMMARY
        subparser = subparsers.add_parser(
            command.NAME,
            help=summary,
            description=getattr(command, "DESCRIPTION", f"{summary[0].upper()}{summary[1:]}."),
            epilog=getattr(command, "EPILOG", None),
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        command.add_to(subparser)
        if run := getattr(command, "run", None):
            subparser.set_defaults(run=run)
