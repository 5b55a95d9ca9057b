# SPDX-License-Identifier: BSD-3-Clause
"""Completion for bash and zsh: what `completion.bash` and `completion.zsh` need to know.

shtab, which makes such scripts from argparse too, was tried (1.13.0). In bash its candidates don't
fit addresses, which readline splits at their colons; in zsh only the first of several devices is
completed, and these are looked up when the script is read, not when they are asked for.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from integration.manual.command import Argument, Command

#: how values are completed, by what they are called, perhaps only in one command: the scripts have
#: a function for each. Nothing is offered for others.
KINDS = {
    "BDF": "devices",
    "unbind BDF": "bound",
    "DEVICE": "served",
    "list N": "iommu_groups",
    "NAME": "bound",
    "USER": "users",
    "GROUP": "groups",
    "FILE": "files",
    "OTHER": "files",
    "PATH": "files",
    "ADDRESS:PORT|PATH": "files",
    "SOCKET": "files",
    "DIR": "directories",
}


def kind(command: Command, argument: Argument) -> str | None:
    value = argument.value or ""
    return KINDS.get(" ".join((*command.words, value)), KINDS.get(value))


def bash(program: Command) -> str:
    rows = [row for command in program.all() for row in _rows(command)]
    return _filled("completion.bash", "".join(rows))


def zsh(program: Command) -> str:
    return _filled("completion.zsh", "\n".join(_function(c, program) for c in program.all()))


def _filled(frame: str, made: str) -> str:
    text = Path(__file__).with_name(frame).read_text()
    return text.replace("@MADE@\n", made)


# bash: a row for each place on the command line, with the function that lists what may stand there.


def _rows(command: Command) -> Iterator[str]:
    options = [option for option in command.options if not option.is_flag]
    yield _row(command, "-", _words(option.name for option in command.options))
    for option in options:
        yield _row(command, option.name, _lister(command, option))
    if command.commands:
        yield _row(command, "1", _words(each.words[-1] for each in command.commands))
    for position, operand in enumerate(command.operands, 1):
        place = "*" if operand.is_many else str(position)
        yield _row(command, place, _lister(command, operand))


def _row(command: Command, place: str, lister: str) -> str:
    words = shlex.quote(" ".join((*command.words, place)))
    if place == "*":
        words = shlex.quote(" ".join((*command.words, ""))) + "[1-9]*"
    row = textwrap.fill(f"{words}) lister=({lister}) ;;", 92, break_on_hyphens=False)
    return textwrap.indent(row.replace("\n", "\n    "), " " * 8) + "\n"


def _lister(command: Command, argument: Argument) -> str:
    return _words(argument.choices) if argument.choices else kind(command, argument) or "words"


def _words(words: Iterable[str]) -> str:
    return shlex.join(("words", *words))


# zsh: a function for each command, which tells _arguments.


def _function(command: Command, program: Command) -> str:
    lines = [_argument(command, option) for option in command.options]
    lines += [_argument(command, operand) for operand in command.operands]
    if command.commands:
        lines += ["': :->command'", "'*:: :->arguments'"]
    told = " \\\n".join(f"        {line}" for line in lines)
    name = _name(command, program)
    if not command.commands:
        return f"{name}() {{\n    _arguments \\\n{told}\n}}\n"
    described = "\n".join(
        " " * 8 + shlex.quote(f"{each.words[-1]}:{each.summary}") for each in command.commands
    )
    return (
        f"{name}() {{\n    local curcontext=$curcontext state line\n"
        f"    local -a commands=(\n{described}\n    )\n"
        f"    _arguments -C \\\n{told} && return\n"
        f"    _vfio_user_bridge_further {name}\n}}\n"
    )


def _name(command: Command, program: Command) -> str:
    return "-".join((f"_{program.parser.prog}", *command.words))


def _argument(command: Command, argument: Argument) -> str:
    """A specification as _arguments takes it."""
    if argument.is_rest:
        return "'*:: :_vfio-user-bridge-serve'"
    if argument.choices:
        completer = f"({' '.join(argument.choices)})"
    else:
        known = kind(command, argument)
        completer = f"_vfio_user_bridge_{known}" if known else " "
    value = "" if argument.is_flag else f":{_escaped(argument.value or 'value')}:{completer}"
    if not argument.names:
        how = "*" if argument.is_many else "" if argument.is_required else ":"
        return shlex.quote(f"{how}{value}")
    before = "*" if argument.is_repeated else "(- *)" if _ends(argument) else ""
    name = argument.name if argument.is_flag else f"{argument.name}="
    return shlex.quote(f"{before}{name}[{_short(argument.help)}]{value}")


def _ends(option: Argument) -> bool:
    """It is all that the program is told."""
    return option.name in ("--help", "--version")


def _short(text: str) -> str:
    """The first clause."""
    return _escaped(re.split(r"[;:] |\. | \(", text)[0])


def _escaped(text: str) -> str:
    """What _arguments would take for its own."""
    return re.sub(r"([\[\]\\:])", r"\\\1", text)
