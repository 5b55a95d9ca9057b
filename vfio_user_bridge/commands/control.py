# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge control`: tell a running bridge what to do."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from vfio_user_bridge import log

from . import add_commands
from .serve import add_record_limit

NAME = "control"
SUMMARY = "tell a running bridge what to do"
EPILOG = """\
examples:
  vfio-user-bridge control reset --control /run/bridge/control
  vfio-user-bridge control drain 0000:01:10.1 --control /run/bridge/control
"""


def add_control(parser: argparse.ArgumentParser) -> None:
    """The option that says which bridge."""
    parser.add_argument(
        "--control",
        metavar="PATH",
        type=Path,
        required=True,
        help="the control socket that serve was told to make",
    )


class Action:
    """A method of the control socket, which is called what the command is, and its one parameter.

    :param add: makes it the parser's argument *what*
    """

    def __init__(
        self, name: str, summary: str, add: Callable[[argparse.ArgumentParser], None]
    ) -> None:
        self.NAME = name
        self.SUMMARY = summary
        self._add = add

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        self._add(parser)
        add_control(parser)

    def run(self, options: argparse.Namespace) -> None:
        from vfio_user_bridge.management.control import ask

        ask(options.control, self.NAME, options.what)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", metavar="NAME", nargs="?", default="", help="a device, if there are several"
    )


def _add_devices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", metavar="NAME", nargs="?", default="", help="a device (default: all)"
    )


def _add_level(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=log.LEVELS, help="what is logged at least")


class Record:
    """Makes the file here, where the operator is: the bridge may not."""

    NAME = "record"
    SUMMARY = "begin to record what is asked of a device; see `trace`"

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", metavar="FILE", type=Path, help="a new file")
        _add_device(parser)
        add_record_limit(parser, "--limit")
        add_control(parser)

    def run(self, options: argparse.Namespace) -> None:
        import os

        from vfio_user_bridge.management.control import ask
        from vfio_user_bridge.recording import new_file

        fd = new_file(options.file)
        try:
            ask(options.control, self.NAME, options.what, options.limit, files=[fd])
        finally:
            os.close(fd)


COMMANDS = (
    Action("reset", "reset a device, between two messages of its client", _add_device),
    Action("disconnect", "put the client of a device out; the next is welcome", _add_device),
    Action("drain", "let no new clients in", _add_devices),
    Action("admit", "let clients in again", _add_devices),
    Record(),
    Action("stop-recording", "end the recording of a device", _add_device),
    Action("log-level", "change how much goes to the bridge's log", _add_level),
)


def add_to(parser: argparse.ArgumentParser) -> None:
    add_commands(parser, COMMANDS)
