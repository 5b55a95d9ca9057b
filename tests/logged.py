# SPDX-License-Identifier: BSD-3-Clause
"""What a process that was started has written to stderr."""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO

from .processes import PATIENCE


class Logged:
    """*log* is the file that is its stderr."""

    def __init__(self, log: IO[str]) -> None:
        self._log = log

    def log(self) -> str:
        """All of it so far."""
        return Path(f"/proc/self/fd/{self._log.fileno()}").read_text()

    def told(self, line: str) -> None:
        """The log has it, or soon does."""
        deadline = time.monotonic() + PATIENCE
        while line not in self.log():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)
