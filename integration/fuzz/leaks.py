# SPDX-License-Identifier: BSD-3-Clause
"""What an input may not leave behind: descriptors, maps of a client's files, memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: inputs; memory is looked at so often only
ROUND = 1000
#: bytes that this process may grow by after the first round. It keeps every new input, and caches.
ALLOWANCE = 64 << 20

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Leaks:
    """Looks at this process after each input."""

    def __init__(self) -> None:
        self._inputs = 0
        self._resident = 0  # after the first round

    @contextmanager
    def none(self) -> Iterator[None]:
        """What the block opens and maps, it closes and unmaps; many such blocks need no memory."""
        before = _descriptors()
        yield
        left = _descriptors() - before
        assert not left, f"left open: {sorted(left)}"
        self._inputs += 1
        if self._inputs % ROUND == 0:
            self._check_memory()

    def _check_memory(self) -> None:
        maps = Path("/proc/self/maps").read_text().splitlines()
        mapped = [line for line in maps if "memfd:" in line]
        assert not mapped, f"left mapped: {mapped}"
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
        self._resident = self._resident or resident
        grown = resident - self._resident
        assert grown < ALLOWANCE, f"{grown} bytes more after {self._inputs} inputs"


def next_descriptor() -> int:
    """The number that the next one will have: it tells of most that come or go, and at once."""
    found = os.dup(0)
    os.close(found)
    return found


def _descriptors() -> set[str]:
    with os.scandir("/proc/self/fd") as entries:
        return {entry.name for entry in entries}
