# SPDX-License-Identifier: BSD-3-Clause
"""Pages of docs/users, run as they stand: their commands, and the output that they show.

A page's sessions are its ```console blocks. A line that begins with "# " is a command for root's
shell, and goes on in the next line where it ends with a backslash. What follows it, up to the next
command, is what it prints; "…" stands for anything in a line, a line of just "…" for any lines. A
command without output may print what it likes. In a block that begins with "```console fails" each
command must fail. One shell runs all of a page; what a page leaves running in the background ("&")
ends with it, and what that prints later is in nobody's way.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

FOLDER = Path(__file__).resolve().parent.parent / "docs/users"
PROMPT = "# "
ANYTHING = "…"
TIMEOUT = 120.0  # seconds, for a command
PATIENCE = 30.0  # seconds, for what is in the background to end
BLOCK = re.compile(r"^```console( fails)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STATUS = re.compile(rb"\x00(\d+)\x00")  # what the shell says when a command has ended


class PageError(Exception):
    """A page's command failed, or printed something else than the page shows."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a page, and what it prints."""

    line: str
    output: str = ""
    fails: bool = False

    @property
    def expected(self) -> re.Pattern[str]:
        """What the output must match, at its beginning for commands in the background."""
        lines = []
        for line in self.output.splitlines(keepends=True):
            if line.strip() == ANYTHING:
                lines.append(r"(?:.*\n)*?")
            else:
                lines.append("[^\n]*".join(map(re.escape, line.split(ANYTHING))))
        return re.compile("".join(lines))


def parse(text: str) -> list[Command]:
    """Return the commands of the page `text`, in order."""
    commands: list[Command] = []
    for fails, block in BLOCK.findall(text):
        for part in re.split(rf"^{PROMPT}", block, flags=re.MULTILINE)[1:]:
            command = re.match(r"(?:.*\\\n)*.*\n", part)
            assert command
            output = part[command.end() :]
            commands.append(Command(command[0].rstrip("\n"), output, bool(fails)))
    return commands


class Shell:
    """A shell that runs commands one after the other, and says what each printed."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="page")
        self._background: list[Path] = []
        self._process = subprocess.Popen(
            ("sh",),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._write("trap : TERM")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGTERM)  # the shell stays, and waits for the others
        try:
            self._write("wait; exit")
            self._process.wait(PATIENCE)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for log in self._background:
            sys.stdout.write(f"In the background:\n{log.read_text()}")
        self._folder.cleanup()

    def run(self, command: Command, timeout: float = TIMEOUT) -> None:
        """Run it until it has ended, or was sent to the background and printed what it should.

        :raise PageError: it failed (or didn't, though it should), hung, or printed something else.
        """
        deadline = time.monotonic() + timeout
        sys.stdout.write(f"{PROMPT}{command.line}\n")  # pytest shows it with a failure
        if command.line.endswith("&"):
            self._start(command, deadline)
            return
        status, output = self._execute(command.line, deadline)
        sys.stdout.write(output)
        if bool(status) != command.fails:
            raise PageError(f"{command.line}: exit status {status}: {output}")
        if command.output and not command.expected.fullmatch(output):
            raise PageError(f"{command.line}: not what the page shows: {output}")

    def _start(self, command: Command, deadline: float) -> None:
        log = Path(self._folder.name, str(len(self._background)))
        self._background.append(log)
        self._execute(f"{{ {command.line}\n}} >{log} 2>&1", deadline)
        while not command.expected.match(log.read_text()):
            if time.monotonic() > deadline:
                raise PageError(f"{command.line}: no end of waiting for {command.output}")
            time.sleep(0.05)

    def _execute(self, line: str, deadline: float) -> tuple[int, str]:
        """Return the exit status of a command line, and what it printed."""
        # What it reads is not what we write: that are the next commands.
        self._write(f"{{ {line}\n}} </dev/null\nprintf '\\0%d\\0' $?")
        said = b""
        while not (status := STATUS.search(said)):
            more = self._read(deadline)
            if not more:
                raise PageError(f"{line}: no end: {said.decode(errors='replace')}")
            said += more
        # A console's lines end as a terminal wants them.
        output = STATUS.sub(b"", said).decode(errors="replace").replace("\r\n", "\n")
        return int(status[1]), output

    def _write(self, text: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{text}\n".encode())
        self._process.stdin.flush()

    def _read(self, deadline: float) -> bytes:
        assert self._process.stdout
        fd = self._process.stdout.fileno()
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        return os.read(fd, 65536) if ready else b""


def read(name: str, here: Mapping[str, str], section: str = "") -> str:
    """Return the page `name` of docs/users, with what is otherwise `here` replaced.

    :param here: by what the page says (a device's address, say), what it is on this machine; the
        text must be there, so that a page can't lose it unnoticed.
    :param section: only what is below this heading of the second level.
    :raise PageError: it isn't, or there is no such section.
    """
    text = (FOLDER / name).read_text()
    if section:
        _, _, text = text.partition(f"\n## {section}\n")
        text, _, _ = text.partition("\n## ")
        if not text:
            raise PageError(f"{name} has no section {section!r} any more")
    for there, ours in here.items():
        if there not in text:
            raise PageError(f"{name} doesn't say {there!r} any more")
        text = text.replace(there, ours)
    return text


def run(name: str, here: Mapping[str, str], timeout: float = TIMEOUT, *, section: str = "") -> None:
    """Run the page `name`, or a section, with what is otherwise `here` replaced as `read` does it.

    :param timeout: seconds for each command.
    :raise PageError: a command failed, hung, or printed something else than the page shows.
    """
    with Shell() as shell:
        for command in parse(read(name, here, section)):
            shell.run(command, timeout)
