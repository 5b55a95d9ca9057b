# SPDX-License-Identifier: BSD-3-Clause
"""Manual pages and completions are those that --help's texts make; each page has all options."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from integration.manual import page, roff
from integration.manual.__main__ import files
from integration.manual.command import Command
from vfio_user_bridge import __version__

from . import command_line

TOP = Path(__file__).parents[1]
PAGES = TOP / "docs/man"
COMMANDS = command_line.every()


def plain(source: str) -> str:
    """Without fonts, and signs of one's own."""
    return re.sub(r"\\f[BIP]", "", source).replace(r"\-", "-").replace(r"\ ", " ")


def page_of(command: str) -> str:
    return plain((PAGES / f"vfio-user-bridge-{command}.1").read_text())


def synopses(text: str) -> dict[str, list[str]]:
    """What each line of a page's synopsis begins with, and what follows."""
    found = re.findall(r'^\.SY "([^"]+)"\n(.*?)\.YS$', text, re.MULTILINE | re.DOTALL)
    return {begin: rest.splitlines() for begin, rest in found}


def described(text: str) -> dict[str, str]:
    """The options that have a tagged paragraph, with what follows them there."""
    return dict(re.findall(r"^\.TP\n(?:-\w, )?(--[a-z-]+)(.*)$", text, re.MULTILINE))


def test_they_are_up_to_date() -> None:
    made = files()
    pages = {f"docs/man/{path.name}" for path in PAGES.iterdir()}
    assert pages == {path for path in made if path.startswith("docs/man/")}, "run make manual"
    old = [path for path, text in made.items() if (TOP / path).read_text() != text]
    assert not old, "run make manual"


def test_the_program() -> None:
    text = plain((PAGES / "vfio-user-bridge.1").read_text())
    listed = re.findall(r"^\.TP\nvfio-user-bridge-(.+)\(1\)$", text, re.MULTILINE)
    assert listed == command_line.commands()
    assert described(text).keys() == command_line.options()


@pytest.mark.parametrize("command", command_line.commands())
def test_commands(command: str) -> None:
    """Those that a command has are sections of its page, each with a synopsis."""
    further, text = command_line.commands(command), page_of(command)
    assert re.findall(r"^\.SS (.+)$", text, re.MULTILINE) == further
    lines = [f"vfio-user-bridge {command} {name}" for name in further]
    assert list(synopses(text)) == (lines or [f"vfio-user-bridge {command}"])


def test_examples_fit_on_a_terminal() -> None:
    for path in PAGES.iterdir():
        for example in re.findall(r"\.EX\n(.*?)\.EE\n", path.read_text(), re.DOTALL):
            assert max(map(len, plain(example).splitlines())) <= 80 - 7, path.name


@pytest.mark.parametrize("command", COMMANDS)
def test_options(command: tuple[str, ...]) -> None:
    text, name = page_of(command[0]), " ".join(command[1:])
    title = f"\n.SS {name}\n" if name else "\n.SH OPTIONS\n"
    options = described(re.split(r"\n\.S[HS] ", text.partition(title)[2])[0])
    assert options.keys() == command_line.options(*command) - {"--help"}
    for option, values in command_line.choices(*command).items():
        assert set(options[option].strip().split("|")) == values
    if not command_line.commands(*command):
        synopsis = " ".join(synopses(text)[" ".join(("vfio-user-bridge", *command))])
        assert set(re.findall(r"--[a-z-]+", synopsis)) == options.keys()


def test_version() -> None:
    for path in PAGES.iterdir():
        assert f'"vfio-user-bridge {__version__}"' in path.read_text().splitlines()[2]


def test_synopsis() -> None:
    parser = argparse.ArgumentParser("vfio-user-bridge", add_help=False)
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument("-a", "--all", action="store_true")
    one.add_argument("--only", metavar="NAME")
    parser.add_argument("--colour", choices=("red", "green"))
    parser.add_argument("--must", metavar="N", required=True)
    parser.add_argument("some", metavar="FILE", nargs="+")
    parser.add_argument("any", metavar="BDF", nargs="*")
    pages = page.pages(Command((), parser, "does this"))
    assert synopses(plain(pages["vfio-user-bridge.1"]))["vfio-user-bridge"] == [
        "(-a, --all | --only NAME)",
        "[--colour red|green]",
        "--must N",
        "FILE ...",
        "[BDF ...]",
    ]


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("It is.\nIt was.", "It is.\nIt was.\n"),
        ("one\n\ntwo", "one\n.PP\ntwo\n"),
        ("-x, not a-b", "\\fB\\-x\\fP, not a-b\n"),
        ("take --no-dma, or N", "take \\fB\\-\\-no\\-dma\\fP, or \\fIN\\fP\n"),
        ("see `list` in /run/x-y.", "see \\fBlist\\fP in \\fI/run/x\\-y\\fP.\n"),
        ("a\\b\n.c", "a\\eb .c\n"),
        (".c", "\\&.c\n"),
        ("examples:\n  it's -x\n    more", ".SH EXAMPLES\n.EX\nit\\(aqs \\-x\n  more\n.EE\n"),
        ("rows:\n  a   b\n      c\n  d   e", ".SH ROWS\n.TP\n\\fBa\\fP\nb c\n.TP\n\\fBd\\fP\ne\n"),
        ("All of\nit:\n  a  b", "All of it:\n.TP\n\\fBa\\fP\nb\n"),
    ],
)
def test_texts(text: str, made: str) -> None:
    assert roff.text(text, ["N"]) == made


def test_what_comes_before_the_first_heading() -> None:
    assert roff.parts("one\n", "two\n\nexamples:\n  x\n") == ("one\n\ntwo", "\n\nexamples:\n  x")
