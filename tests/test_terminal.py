# SPDX-License-Identifier: BSD-3-Clause
"""Text and tables: plain in a pipe, coloured on a terminal, in place if they are watched."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from vfio_user_bridge.terminal import Styled, Table

from .running_server import PATIENCE

TABLE = Table(
    ("NAME", "COUNT", "WHAT"),
    [("one", "1", "something"), ("another", "1,000", Styled("else", "red"))],
    right=("COUNT",),
)
SHOWN = """\
NAME     COUNT  WHAT
one          1  something
another  1,000  else"""
#: SGR of ECMA-48
RED = "\x1b[31m"

SHOW = """
from vfio_user_bridge.terminal import *
table = Table(("NAME", "WHAT"), [("one", "x" * 100), ("two", Styled("short", "red"))])
show([Styled("a heading", "red"), table])
"""
WATCH = """
from itertools import count
from vfio_user_bridge.terminal import *
numbers = count()
watch(lambda: [f"number {next(numbers)}"], 0.05)
"""
#: as if rich weren't installed
WITHOUT_RICH = "import sys; sys.modules['rich'] = sys.modules['rich.console'] = None\n"


def on_terminal(script: str, *, until: str = "", columns: int = 60) -> str:
    """What *script* writes to a terminal, to its end, or until this is there."""
    ours, its = pty.openpty()
    size = {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "20"}
    environment = {**os.environ, **size, "PYTHONPATH": str(Path(__file__).parents[1])}
    for name in ("NO_COLOR", "FORCE_COLOR"):
        environment.pop(name, None)
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=its, stdout=its, env=environment) as process:
        os.close(its)
        said = b""
        try:
            while not until or until.encode() not in said:
                said += os.read(ours, 1 << 16)
        except OSError:  # EIO: nobody has the other end any more
            assert not until, said
        if until:
            process.send_signal(signal.SIGINT)
        os.set_blocking(ours, False)
        process.wait(PATIENCE)
    os.close(ours)
    return said.decode()


def test_a_table() -> None:
    assert str(TABLE) == SHOWN


def test_the_last_column_gives_way() -> None:
    wide = Table(("NAME", "WHAT"), [("one", "x" * 100), ("two", "short")])
    for width in (26, 40, 80):
        lines = wide.aligned(width).splitlines()
        assert [len(line) for line in lines[1:]] == [width, len("two   short")]
        assert lines[1].endswith("x…")
    assert wide.aligned(10).splitlines()[1] == f"one   {'x' * 19}…"  # readable all the same
    assert "…" not in wide.aligned(200)


def test_in_a_pipe() -> None:
    shown = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == [
        "a heading",
        "NAME  WHAT",
        f"one   {'x' * 100}",
        "two   short",
    ]


def test_on_a_terminal() -> None:
    shown = on_terminal(SHOW)
    assert f"{RED}a heading" in shown
    assert f"{RED}short" in shown
    assert re.search(r"one +x+…", shown)


def test_on_a_terminal_without_rich() -> None:
    shown = on_terminal(WITHOUT_RICH + SHOW)
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) == 60


@pytest.mark.parametrize("before", ["", WITHOUT_RICH], ids=["rich", "plain"])
def test_watching(before: str) -> None:
    seen = on_terminal(before + WATCH, until="number 3")
    places = [seen.index(f"number {number}") for number in range(4)]
    for earlier, later in pairwise(places):
        assert "\x1b[H" in seen[earlier:later]  # at the same place again
