# SPDX-License-Identifier: BSD-3-Clause
"""A process that says, by a line, when it is ready."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def started(command: Sequence[str]) -> Iterator[int]:
    """Give its ID once it is; in the end it is killed."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        try:
            assert process.stdout
            assert process.stdout.readline(), "it ended before it was ready"
            yield process.pid
        finally:
            process.kill()
