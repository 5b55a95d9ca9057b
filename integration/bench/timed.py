# SPDX-License-Identifier: BSD-3-Clause
"""What the C client measures: its own cost is a few system calls, so Python's isn't in the way."""

from __future__ import annotations

import array
import subprocess
from pathlib import Path

from .setting import Setting


def microseconds(raw: bytes, batch: int = 1) -> list[float]:
    """What a client wrote, for each access of a batch."""
    return [nanoseconds / 1000 / batch for nanoseconds in array.array("Q", raw)]


def timed(
    setting: Setting, kind: str, batch: int, count: int, *sockets: Path
) -> list[list[list[float]]]:
    """Microseconds by server, round and batch.

    :param kind: read, write or hello
    :param count: batches in a round
    :raise CalledProcessError: a server didn't do as it was asked; the client has said what
    """
    rounds, count = setting.effort.rounds, max(1, count)
    program, numbers = setting.folder / "timed", map(str, (batch, rounds, count))
    client = subprocess.run([program, kind, *numbers, *sockets], stdout=subprocess.PIPE, check=True)
    flat = microseconds(client.stdout, batch)
    pieces = [flat[at : at + count] for at in range(0, len(flat), count)]
    return [pieces[number :: len(sockets)] for number in range(len(sockets))]
