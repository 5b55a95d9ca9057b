# SPDX-License-Identifier: BSD-3-Clause
"""The manual page has every command and option, and none that isn't."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vfio_user_bridge import __version__

from . import command_line

SOURCE = (Path(__file__).parents[1] / "docs/man/vfio-user-bridge.1").read_text()
PAGE = SOURCE.replace(r"\-", "-")
COMMANDS = command_line.commands()


def described(section: str) -> set[str]:
    """The options that a section defines: the first line of a tagged paragraph."""
    return set(re.findall(r'^\.TP\n\.[BIR]+ "?(--[a-z-]+)', section, re.MULTILINE))


def chapter(title: str) -> str:
    return PAGE.partition(f"\n.SH {title}\n")[2].partition("\n.SH ")[0]


def commands() -> dict[str, str]:
    """The text on each command."""
    _, *parts = re.split(r"^\.SS (.+)\n", chapter("COMMANDS"), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_commands() -> None:
    assert COMMANDS
    assert set(commands()) == set(COMMANDS)
    synopsis = re.findall(r'^\.BI? "?vfio-user-bridge ([a-z][a-z-]*)', PAGE, re.MULTILINE)
    assert set(synopsis) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_options(command: str) -> None:
    assert described(commands()[command]) == command_line.options(command) - {"--help"}


@pytest.mark.parametrize("command", COMMANDS)
def test_values(command: str) -> None:
    for option, values in command_line.choices(command).items():
        listed = re.search(rf'^\.BR {option} " " (.+)$', commands()[command], re.MULTILINE)
        assert listed, option
        assert set(listed[1].split(" | ")) == values


def test_options_of_the_program() -> None:
    assert described(chapter("OPTIONS")) | {"--help"} == command_line.options()


def test_version() -> None:
    assert f'"vfio-user-bridge {__version__}"' in PAGE.splitlines()[1]
