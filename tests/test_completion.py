# SPDX-License-Identifier: BSD-3-Clause
"""bash completes exactly what the command line takes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from . import command_line

SCRIPT = Path(__file__).parents[1] / "integration/bash/vfio-user-bridge"
COMMANDS = command_line.commands()
CHOICES = [(c, o, v) for c in COMMANDS for o, v in command_line.choices(c).items()]

# What readline does before it calls the function that `complete -p` names (bash(1),
# "Programmable Completion"), but for COMP_WORDS and COMP_CWORD.
COMPLETE = """
shopt -u progcomp_alias
. "$1"
COMP_LINE="vfio-user-bridge $2" COMP_POINT=$((17 + ${#2}))
$(complete -p vfio-user-bridge | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
printf '%s\\n' "${COMPREPLY[@]}"
"""


def complete(line: str) -> set[str]:
    """What is offered at the end of `vfio-user-bridge LINE`."""
    command = ["bash", "--norc", "-c", COMPLETE, "bash", str(SCRIPT), line]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not done.stderr
    return set(done.stdout.split())


def test_commands() -> None:
    assert complete("") == set(COMMANDS)
    assert complete("l") == {command for command in COMMANDS if command.startswith("l")}


def test_options_of_the_program() -> None:
    assert complete("-") == command_line.options() | {"--print-capabilities"}


@pytest.mark.parametrize("command", COMMANDS)
def test_options(command: str) -> None:
    assert complete(f"{command} -") == command_line.options(command)
    assert complete(f"{command} some thing --h") == {"--help"}


@pytest.mark.parametrize(("command", "option", "values"), CHOICES)
def test_values(command: str, option: str, values: set[str]) -> None:
    assert complete(f"{command} {option} ") == values


@pytest.mark.parametrize("command", COMMANDS)
def test_other_values_are_left_to_readline(command: str) -> None:
    """That is, paths. A flag is followed by what would be there without it."""
    known = {"--group", "--user", "--allow-uid", "--allow-gid"}
    free = command_line.options(command) - command_line.flags(command) - known
    for option in free - command_line.choices(command).keys():
        assert complete(f"{command} {option} ") == set(), option


def test_users_and_groups() -> None:
    assert "root" in complete("serve --user r") & complete("serve --allow-uid r")
    assert "root" in complete("serve --allow-gid r")


def test_paths_are_left_to_readline() -> None:
    assert complete("qemu-args ") == set()


def test_what_stands_before_a_colon_stays() -> None:
    """A colon is one of readline's word breaks: it replaces only what follows."""
    assert "model:edu" in complete("serve m")
    assert complete("serve model:") == {"edu"}


def test_devices() -> None:
    every = {path.name for path in Path("/sys/bus/pci/devices").glob("*")}
    bound = {path.name for path in Path("/sys/bus/pci/drivers/vfio-pci").glob("*:*")}
    assert complete("bind ") == complete("list ") == complete("bind --group ") == every
    assert complete("unbind ") == bound
    assert complete("serve ") == {"model:edu", *bound}
