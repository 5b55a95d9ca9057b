# SPDX-License-Identifier: BSD-3-Clause
"""A command as its parser has it. argparse has no public way to ask, so only this file looks."""
# ruff: noqa: SLF001

from __future__ import annotations

import argparse
from argparse import ONE_OR_MORE, OPTIONAL, REMAINDER, SUPPRESS, ZERO_OR_MORE, Action
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Argument:
    """An option, or without *names* what stands at a position of its own."""

    action: Action

    @property
    def names(self) -> Sequence[str]:
        return self.action.option_strings

    @property
    def name(self) -> str:
        """The long one; none for what has a position."""
        return max(self.names, key=len, default="")

    @property
    def value(self) -> str | None:
        """What its value is called; None for a flag, and where it is one of `choices`."""
        if self.action.nargs == 0 or self.choices:
            return None
        assert isinstance(self.action.metavar, str), f"{self.action.dest} has no metavar"
        return self.action.metavar

    @property
    def choices(self) -> list[str]:
        return [str(choice) for choice in self.action.choices or ()]

    @property
    def is_flag(self) -> bool:
        return self.value is None and not self.choices

    @property
    def is_required(self) -> bool:
        return self.action.required and self.action.nargs not in (OPTIONAL, ZERO_OR_MORE)

    @property
    def is_many(self) -> bool:
        """More than one value may follow."""
        return self.action.nargs in (ZERO_OR_MORE, ONE_OR_MORE) or self.is_rest

    @property
    def is_rest(self) -> bool:
        """All that follows, for the command that stands before it."""
        return self.action.nargs == REMAINDER

    @property
    def is_repeated(self) -> bool:
        """The option may be given several times."""
        return isinstance(self.action, argparse._AppendAction)

    @property
    def help(self) -> str:
        return (self.action.help or "") % vars(self.action)


@dataclass(frozen=True, slots=True)
class Command:
    """A parser, and the *words* before its arguments; none of them for the program itself."""

    words: tuple[str, ...]
    parser: argparse.ArgumentParser
    summary: str

    @property
    def commands(self) -> list[Command]:
        """Those one word further down."""
        found = []
        for action in self.parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for listed in action._choices_actions:
                    words = (*self.words, listed.dest)
                    found.append(Command(words, action.choices[listed.dest], listed.help or ""))
        return found

    def all(self) -> Iterator[Command]:
        """Itself, and all further down."""
        yield self
        for command in self.commands:
            yield from command.all()

    @property
    def options(self) -> list[Argument]:
        return [argument for argument in self._arguments() if argument.names]

    @property
    def operands(self) -> list[Argument]:
        """What isn't an option, nor a command's name."""
        return [argument for argument in self._arguments() if not argument.names]

    @property
    def alternatives(self) -> list[tuple[list[Argument], bool]]:
        """What stands on the command line, in groups of which one is given; whether one must be."""
        grouped: dict[int, tuple[list[Argument], bool]] = {}
        for group in self.parser._mutually_exclusive_groups:
            members = [Argument(action) for action in group._group_actions]
            grouped |= {id(action): (members, group.required) for action in group._group_actions}
        found: list[tuple[list[Argument], bool]] = []
        for argument in (*self.options, *self.operands):
            one = grouped.get(id(argument.action), ([argument], argument.is_required))
            if one not in found:
                found.append(one)
        return found

    def _arguments(self) -> Iterator[Argument]:
        for action in self.parser._actions:
            if action.help != SUPPRESS and not isinstance(action, argparse._SubParsersAction):
                yield Argument(action)
