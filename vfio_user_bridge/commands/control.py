# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge control`: tell a running bridge what to do."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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

    :param what: the argument that says it, with what *argument* says of that
    """

    def __init__(self, name: str, summary: str, what: str, argument: Mapping[str, Any]) -> None:
        self.NAME = name
        self.SUMMARY = summary
        self._what = what
        self._argument = argument

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(self._what, **self._argument)
        add_control(parser)

    def run(self, options: argparse.Namespace) -> None:
        from vfio_user_bridge.management.control import ask

        ask(options.control, self.NAME, getattr(options, self._what))


_DEVICE = {"metavar": "NAME", "nargs": "?", "default": ""}
ONE: Mapping[str, Any] = {**_DEVICE, "help": "a device, if there are several"}
ANY: Mapping[str, Any] = {**_DEVICE, "help": "a device (default: all)"}
LEVEL: Mapping[str, Any] = {"choices": log.LEVELS, "help": "what is logged at least"}


class Record:
    """Makes the file here, where the operator is: the bridge may not."""

    NAME = "record"
    SUMMARY = "begin to record what is asked of a device; see `trace`"

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", metavar="FILE", type=Path, help="a new file")
        parser.add_argument("device", **ONE)
        add_record_limit(parser, "--limit")
        add_control(parser)

    def run(self, options: argparse.Namespace) -> None:
        import os

        from vfio_user_bridge.errors import BridgeError
        from vfio_user_bridge.management.control import NoAnswerError, ask
        from vfio_user_bridge.recording import new_file

        fd = new_file(options.file)
        try:
            ask(options.control, self.NAME, options.device, options.limit, files=[fd])
        except NoAnswerError:
            raise  # it may yet record into it
        except BridgeError:
            options.file.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)


COMMANDS = (
    Action("reset", "reset a device, between two messages of its client", "device", ONE),
    Action("disconnect", "put the client of a device out; the next is welcome", "device", ONE),
    Action("drain", "let no new clients in", "device", ANY),
    Action("admit", "let clients in again", "device", ANY),
    Record(),
    Action("stop-recording", "end the recording of a device", "device", ONE),
    Action("log-level", "change how much goes to the bridge's log", "level", LEVEL),
)


def add_to(parser: argparse.ArgumentParser) -> None:
    add_commands(parser, COMMANDS)
