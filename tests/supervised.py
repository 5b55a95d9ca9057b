# SPDX-License-Identifier: BSD-3-Clause
"""A supervisor as a process of its own; in the bridge's place a program that does as it is told."""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

from .logged import Logged

PATIENCE = 20.0

#: runs each line of stdin, which it shares with its successors, and so reads no further
PROGRAM = """
import os, signal, socket, sys, time

def tell(text, *fds):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.connect(chr(0) + os.environ["NOTIFY_SOCKET"][1:])
        socket.send_fds(manager, [text.encode()], fds)

def store(name, *fds):
    tell(f"FDSTORE=1\\nFDNAME={name}\\nFDPOLL=0", *fds)

def heard():
    mine, theirs = os.pipe()
    tell("BARRIER=1", theirs)
    os.close(theirs)
    os.read(mine, 1)

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

say(os.getpid())
stdin = open(0, "rb", buffering=0)
while line := stdin.readline():
    exec(eval(line))
"""

SUPERVISE = """
import ast, os, sys
from vfio_user_bridge import log
from vfio_user_bridge.handover.supervisor import Supervisor
log.set_up("info")
options, *command = sys.argv[1:]
sys.exit(Supervisor(command, os.environ, **ast.literal_eval(options)).run())
"""


class Supervised(Logged):
    """What *process* supervises, started; *pid* is its number."""

    def __init__(self, process: subprocess.Popen[str], log: IO[str]) -> None:
        self.process = process
        super().__init__(log)
        self.started()

    def started(self) -> int:
        """Wait for the next one; gives its number."""
        self.pid = int(self.line())
        return self.pid

    def line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, f"it has ended: {self.log()}"
        return line.rstrip("\n")

    def do(self, *statements: str) -> None:
        """Have it do so, and don't wait for it."""
        assert self.process.stdin
        self.process.stdin.write(f"{chr(10).join(statements)!r}\n")
        self.process.stdin.flush()

    def done(self, *statements: str) -> None:
        """Have it do so; what it told the supervisor has been heard then."""
        self.do(*statements, "heard()", "say('done')")
        assert self.line() == "done"

    def ask(self, expression: str) -> Any:
        self.do(f"say(repr({expression}))")
        return ast.literal_eval(self.line())

    def passed(self) -> list[str]:
        """The names of what it was passed."""
        count, names = self.ask("[os.environ.get(f'LISTEN_{it}', '') for it in ('FDS', 'FDNAMES')]")
        found = names.split(":") if count else []
        assert len(found) == int(count or 0)
        return found

    def kill(self) -> int:
        """Gives the number of its successor."""
        os.kill(self.pid, signal.SIGKILL)
        return self.started()

    def end(self) -> int:
        """Wait for the supervisor's end; gives its status."""
        return self.process.wait(PATIENCE)


@contextlib.contextmanager
def supervised(
    *before: str, environment: dict[str, str] | None = None, **options: float
) -> Iterator[Supervised]:
    """:param before: what runs the supervisor
    :param options: of `Supervisor`
    """
    program = (sys.executable, "-I", "-S", "-c", PROGRAM)
    supervise: Sequence[str] = (sys.executable, "-c", SUPERVISE)
    told = {"most": 8, "longest_pause": 0.0} | options
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [*before, *supervise, repr(told), *program],
            stdin=pipe,
            stdout=pipe,
            stderr=log,
            text=True,
            env={**os.environ, **(environment or {})},
        ) as process,
    ):
        try:
            yield Supervised(process, log)
        finally:
            process.kill()  # whoever is left sees the end of its input, and ends
