# SPDX-License-Identifier: BSD-3-Clause
"""bash and zsh complete exactly what the command line takes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.manual import completion
from integration.manual.command import Command

from . import command_line
from .shells import Shell

TOP = Path(__file__).parents[1]
SCRIPTS = {
    "bash": TOP / "integration/bash/vfio-user-bridge",
    "zsh": TOP / "integration/zsh/_vfio-user-bridge",
}
COMMANDS = [" ".join(words) for words in command_line.every()]
CHOICES = [(c, o, v) for c in COMMANDS for o, v in command_line.choices(*c.split()).items()]

DEVICES = {path.name for path in Path("/sys/bus/pci/devices").glob("*")}
BOUND = {path.name for path in Path("/sys/bus/pci/drivers/vfio-pci").glob("*:*")}
IOMMU_GROUPS = {path.name for path in Path("/sys/kernel/iommu_groups").glob("*")}
FILES, FOLDERS = {"file", "folder"}, {"folder"}

#: what is offered at the end of a line
OFFERED = {
    "libv": {"libvirt-xml"},
    "bind ": DEVICES,
    "bind --group ": DEVICES,
    "bind 0000:00:00.0 ": DEVICES,
    "list ": DEVICES,
    "list --group ": IOMMU_GROUPS,
    "unbind ": BOUND,
    "serve ": {"model:edu", *BOUND},
    # A colon and an equals sign are word breaks of readline: it replaces only what follows.
    "serve model:": {"model:edu"},
    "serve --fd 3 m": {"model:edu"},
    "serve --fd=3 m": {"model:edu"},
    "serve --confine=al": {"--confine=all"},
    "serve --socket-path ": FILES,
    "serve --socket-path=fil": {"--socket-path=file"},
    "serve --socket-dir ": FOLDERS,
    "serve --poll ": set(),
    "supervise ": {"serve"},
    "supervise --watchdog 5 serve ": {"model:edu", *BOUND},
    "supervise serve model:edu --confine ": {"auto", "all", "off"},
    "status --control ": FILES,
    "control reset ": BOUND,
    "control record ": FILES,
    "control record file ": BOUND,
    "control log-level ": {"debug", "info", "warning", "error"},
    "qemu-args ": FILES,
    "qemu-args file fo": FOLDERS,
    "qemu-args --memory ": set(),
    "libvirt-xml --domain ": FILES,
    "nonsense ": set(),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shells are: with a file and a folder."""
    folder = tmp_path_factory.mktemp("shell")
    (folder / "file").touch()
    (folder / "folder").mkdir()
    return folder


@pytest.fixture(scope="module", params=SCRIPTS)
def shell(request: pytest.FixtureRequest, folder: Path) -> Iterator[Shell]:
    with Shell(request.param, SCRIPTS[request.param], folder) as shell:
        yield shell


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_commands_and_options(shell: Shell, command: str) -> None:
    words = command.split()
    assert shell.offers(f"{command} -") == command_line.options(*words)
    assert shell.offers(f"{command} --he") == {"--help"}
    if commands := command_line.commands(*words):
        assert shell.offers(f"{command} ") == set(commands)


@pytest.mark.parametrize(("command", "option", "values"), CHOICES)
def test_values(shell: Shell, command: str, option: str, values: set[str]) -> None:
    assert shell.offers(f"{command} {option} ") == values


@pytest.mark.parametrize("line", OFFERED)
def test_offered(shell: Shell, line: str) -> None:
    assert shell.offers(line) == OFFERED[line]


@pytest.mark.skipif(not DEVICES, reason="no PCI here")
def test_an_address_after_its_colons(shell: Shell) -> None:
    device = min(DEVICES)
    assert device in shell.offers(f"bind {device}")
    assert shell.offers(f"bind {device[:-1]}") >= {device}


def test_users_and_groups(shell: Shell) -> None:
    assert "root" in shell.offers("serve --user ro") & shell.offers("serve --allow-uid ro")
    assert "root" in shell.offers("serve --allow-gid ro")


@pytest.mark.parametrize("name", SCRIPTS)
def test_commands_of_commands(name: str, folder: Path, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser("vfio-user-bridge")
    commands = parser.add_subparsers(metavar="COMMAND")
    outer = commands.add_parser("outer", help="it's [odd]: has more")
    further = outer.add_subparsers(metavar="COMMAND")
    inner = further.add_parser("inner", help="one of them")
    inner.add_argument("-c", "--colour", choices=("red", "green"), help="of: it [all]")
    inner.add_argument("first", metavar="FILE", help="a file")
    inner.add_argument("second", metavar="DIR", help="a folder")
    inner.add_argument("third", metavar="SOCKET", nargs="?", help="if need be")
    many = further.add_parser("many", help="another")
    many.add_argument("first", metavar="FILE", help="a file")
    many.add_argument("rest", choices=("x", "y"), nargs="*", help="one of two")
    script = tmp_path / "_vfio-user-bridge"
    program = Command((), parser, "")
    script.write_text({"bash": completion.bash, "zsh": completion.zsh}[name](program))
    offered = {
        "": {"outer"},
        "outer ": {"inner", "many"},
        "outer -": {"--help"},
        "outer inner --c": {"--colour"},
        "outer inner --colour ": {"red", "green"},
        "outer inner --colour red f": FILES,
        "outer inner file ": FOLDERS,
        "outer inner file folder ": FILES,
        "outer many ": FILES,
        "outer many file ": {"x", "y"},
        "outer many file x ": {"x", "y"},
    }
    with Shell(name, script, folder) as shell:
        assert {line: shell.offers(line) for line in offered} == offered
