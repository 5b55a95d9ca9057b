# SPDX-License-Identifier: BSD-3-Clause
"""What the command line takes, read off its own --help: the measure of what is written about it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from unittest import mock

from vfio_user_bridge.cli import main


def commands(*command: str) -> list[str]:
    """The names of all commands; of those of a command, if it has some."""
    return re.findall(r"^    ([a-z-]+)", _section(_help(*command), "commands"), re.MULTILINE)


def every(*command: str) -> list[tuple[str, ...]]:
    """The words of each command, also of those that commands have."""
    further = [(*command, name) for name in commands(*command)]
    return further + [words for each in further for words in every(*each)]


def options(*command: str) -> set[str]:
    """The long options of a command; without one, those of the program."""
    return set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", _options(*command), re.MULTILINE))


def choices(*command: str) -> dict[str, set[str]]:
    """The values of those options that have a fixed few."""
    found = re.findall(r"^  (--[a-z-]+) \{(.+?)\}", _options(*command), re.MULTILINE)
    return {option: set(values.split(",")) for option, values in found}


def without(module: str, *words: str) -> tuple[int, str]:
    """Status and stderr of a command where *module* isn't installed."""
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        f"from vfio_user_bridge.cli import main\nsys.exit(main({list(words)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def _options(*command: str) -> str:
    return _section(_help(*command), "options")


def _section(text: str, title: str) -> str:
    return text.partition(f"{title}:\n")[2].partition("\n\n")[0]


def _help(*command: str) -> str:
    with (
        contextlib.redirect_stdout(io.StringIO()) as said,
        mock.patch.dict(os.environ, COLUMNS="200"),
    ):
        assert main([*command, "--help"]) == 0
    return said.getvalue()
