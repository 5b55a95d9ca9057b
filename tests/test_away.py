# SPDX-License-Identifier: BSD-3-Clause
"""The measure of how long a server is away sees that it is."""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest

from integration.away import Away

from .processes import await_state
from .running_server import server

PAUSE = 0.3


def test_what_it_measures(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with (
        server(path, "--socket-path", str(path)) as running,
        running.client() as client,
        closing(Away(client)) as away,
    ):
        begun = time.monotonic()
        away.longest()
        os.kill(running.process.pid, signal.SIGSTOP)
        await_state(running.process.pid, "T")
        time.sleep(PAUSE)
        os.kill(running.process.pid, signal.SIGCONT)
        paused = away.longest()
        assert PAUSE <= paused <= time.monotonic() - begun
        assert away.longest() < paused
        running.process.kill()
        with pytest.raises((OSError, EOFError)):
            away.longest()
