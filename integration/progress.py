# SPDX-License-Identifier: BSD-3-Clause
"""Long steps, as the person who waits for them sees them.

A :class:`Step` shows one line: what is being done, and for how many seconds. The output of the
commands it runs goes to a log file, which is shown only when a command fails.
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

    def __init__(self, what: str, log: Path) -> None:
        """Name the step `what` in the operator's words; commands write to the file `log`."""
        self.what = what
        self.log = log
        self._done = threading.Event()
        self._started = 0.0
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    @property
    def elapsed(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self._started

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

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        if sys.stderr.isatty():
            self._ticker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._ticker.is_alive():
            self._ticker.join()
        self._show("failed after " if kind else "", "\n")

    def _tick(self) -> None:
        while not self._done.wait(1):
            self._show("", "")

    def _show(self, prefix: str, end: str) -> None:
        start = "\r" if sys.stderr.isatty() else ""
        sys.stderr.write(f"{start}  {self.what}: {prefix}{self.elapsed:.0f} s{end}")
        sys.stderr.flush()
