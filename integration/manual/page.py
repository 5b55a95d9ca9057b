# SPDX-License-Identifier: BSD-3-Clause
"""The manual: a page for the program, and one for each of its commands."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from integration.manual import roff
from integration.manual.command import Argument, Command
from vfio_user_bridge import __version__
from vfio_user_bridge.commands import PROGRAM

#: of the version: the pages are the same on every day
DATE = "2026-11-25"


def pages(program: Command) -> dict[str, str]:
    """By the names of their files."""
    written = Path(__file__).with_name("rest.1").read_text()
    made = {f"{PROGRAM}.1": _page(program, [program], _listed(program), written)}
    for command in program.commands:
        _, *further = command.all()
        sections = "".join(map(_section, further))
        above = f".SH SEE ALSO\n.BR {roff.code(PROGRAM)} (1)\n"
        made[f"{_name(command)}.1"] = _page(command, further or [command], sections, above)
    return made


def _page(command: Command, synopses: list[Command], commands: str, rest: str) -> str:
    description, options, more = _texts(command)
    return (
        '.\\" SPDX-License-Identifier: BSD-3-Clause\n.\\" Made by make manual.\n'
        f'.TH {_name(command).upper()} 1 {DATE} "{PROGRAM} {__version__}" "User Commands"\n'
        f".SH NAME\n{roff.code(_name(command))} \\- {roff.prose(command.summary)}"
        f".SH SYNOPSIS\n{''.join(map(_synopsis, synopses))}"
        f".SH DESCRIPTION\n{description}"
        + (f".SH COMMANDS\n{commands}" if commands else "")
        + (f".SH OPTIONS\n{options}" if options else "")
        + more
        + rest
    )


def _name(command: Command) -> str:
    return "-".join((PROGRAM, *command.words))


def _listed(program: Command) -> str:
    return "".join(_tagged(f"{roff.bold(_name(c))}(1)", c.summary) for c in program.commands)


def _section(command: Command) -> str:
    """On a command that is one of a command's."""
    title = roff.code(" ".join(command.words[1:]))
    return f".SS {title}\n" + "".join(_texts(command, section=".PP\n.B"))


def _texts(command: Command, section: str = ".SH") -> tuple[str, str, str]:
    """Its description, its arguments, and what is below them in its help."""
    description, more = roff.parts(command.parser.description, command.parser.epilog)
    arguments = [*command.operands, *command.options]
    if command.words:  # the program's page says that all have --help
        arguments = [each for each in arguments if each.name != "--help"]
    values = [word for each in arguments for word in re.findall("[A-Z_]+", each.value or "")]
    return (
        roff.text(description, values),
        "".join(_tagged(_signature(each), each.help, values) for each in arguments),
        roff.text(more, values, section),
    )


def _tagged(term: str, text: str, values: Collection[str] = ()) -> str:
    return f".TP\n{term}\n{roff.prose(text, values)}"


def _signature(argument: Argument) -> str:
    """Its names, and what its value is."""
    names = ", ".join(map(roff.bold, argument.names))
    value = "|".join(map(roff.bold, argument.choices)) or roff.italic(argument.value or "")
    return " ".join(filter(None, (names, "" if argument.is_flag else value)))


def _synopsis(command: Command) -> str:
    units = []
    for members, is_required in command.alternatives:
        if members[0].name == "--help":
            continue
        unit = " | ".join(map(_signature, members)) + (" ..." if members[0].is_many else "")
        if not is_required:
            unit = f"[{unit}]"
        elif len(members) > 1:
            unit = f"({unit})"
        units.append(unit.replace(" ", r"\ "))  # isn't broken
    if command.commands:
        units.append(rf"{roff.italic('COMMAND')}\ ...")
    lines = "".join(f"{unit}\n" for unit in units)
    return f'.SY "{roff.code(" ".join((PROGRAM, *command.words)))}"\n{lines}.YS\n'
