# SPDX-License-Identifier: BSD-3-Clause
"""Long steps, as the person who waits for them sees them.

A :class:`Step` shows one line: what is being done, and for how many seconds. The output of the
commands that a :class:`LoggedStep` runs goes to a file, whose end is shown when one fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

TAIL_LINES = 25

# Root's shell may lack the folders of root's tools (Debian's su without "-" does); and apt-get
# must not ask.
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
    "DEBIAN_FRONTEND": "noninteractive",
}


class StepError(Exception):
    """A step failed. The text is for the operator: the step, the command, the log's tail."""


def which(tool: str) -> str | None:
    """Return the path of the command `tool` as a step would run it, or None."""
    return shutil.which(tool, path=ENVIRONMENT["PATH"])


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """Return the last `lines` lines of the file `log`."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


class Step:
    """A context that says what is being done and how long it took, on standard error.

    On a terminal the line counts the seconds while they pass; elsewhere it is printed once, at
    the end, so that logs stay readable.
    """

    def __init__(self, what: str) -> None:
        """Name the step `what` in the operator's words."""
        self.what = what
        self._done = threading.Event()
        self._started = 0.0
        self._live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        if self._live:
            self._ticker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._live:
            self._ticker.join()
        self._show("failed after " if kind else "", "\n")

    def _tick(self) -> None:
        while not self._done.wait(1):
            self._show("", "")

    def _show(self, prefix: str, end: str) -> None:
        start = "\r" if self._live else ""
        elapsed = time.monotonic() - self._started
        sys.stderr.write(f"{start}  {self.what}: {prefix}{elapsed:.0f} s{end}")
        sys.stderr.flush()


class LoggedStep(Step):
    """A step that runs commands, their output going to a file."""

    def __init__(self, what: str, log: Path) -> None:
        """Name the step `what`; begin the file `log` anew."""
        super().__init__(what)
        self.log = log
        log.write_bytes(b"")

    def run(self, *command: str | Path) -> None:
        """Run `command` to its end, its output appended to the log.

        :raise StepError: it can't be started, or its exit status is not 0.
        """
        tool = command[0]
        with self.log.open("ab") as log:
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=ENVIRONMENT,
                    check=False,
                )
            except OSError as error:
                raise StepError(f"{self.what}: can't run {tool}: {error.strerror}") from error
        if done.returncode:
            raise StepError(
                f"{self.what}: {tool} failed with status {done.returncode}; the end of "
                f"{self.log}:\n{tail(self.log)}"
            )
