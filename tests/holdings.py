# SPDX-License-Identifier: BSD-3-Clause
"""What a process holds, as /proc tells it (proc(5)): whoever leaks holds more from time to time."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

from .processes import PATIENCE, number, status


@dataclass(frozen=True)
class Holdings:
    """Of one process at one moment. Sizes are in KiB."""

    descriptors: tuple[str, ...]  # what each leads to, without the numbers of sockets
    threads: int
    client_files: int  # mappings of memfds
    locked: int
    pinned: int


def holdings(pid: int) -> Holdings:
    process = Path(f"/proc/{pid}")
    links = []
    for entry in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            links.append(str(entry.readlink()))
    told = status(pid)
    maps = (process / "maps").read_text()
    return Holdings(
        tuple(sorted(re.sub(r":\[\d+\]$", "", link) for link in links)),
        number(told["Threads"]),
        maps.count(" /memfd:"),
        number(told["VmLck"]),
        number(told["VmPin"]),
    )


def await_holdings(pid: int, expected: Holdings) -> None:
    """Wait until the process holds just that again, as soon as it has cleaned up."""
    deadline = time.monotonic() + PATIENCE
    while (held := holdings(pid)) != expected:
        assert time.monotonic() < deadline, f"{held}, not {expected}"
        time.sleep(0.001)


def await_no_client(pid: int, idle: Holdings) -> Holdings:
    """Wait until a server that was *idle* once has no client again; gives what it holds then.

    The last that it does for a client is to hang up.
    """
    sockets = idle.descriptors.count("socket")
    deadline = time.monotonic() + PATIENCE
    while holdings(pid).descriptors.count("socket") > sockets:
        assert time.monotonic() < deadline, "it keeps its client"
        time.sleep(0.001)
    return holdings(pid)  # once more: it was at work while we looked
