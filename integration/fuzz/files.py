# SPDX-License-Identifier: BSD-3-Clause
"""The files that an input can send: a guest's RAM, and one of each kind that a client may try."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from integration.qtest import MEMORY_MIB
from tests.hostile_files import KINDS, hostile_files

#: indexes of what `opened` gives: what QEMU sends
RAM = 0
EVENTFD = 1 + list(KINDS).index("eventfd")


@contextmanager
def opened() -> Iterator[list[int]]:
    """Their descriptors. The corpus has their indexes, so a new kind belongs at the end."""
    # As large as that of the QEMU whose traffic is in the corpus, so that its maps can be made.
    ram = os.memfd_create("ram")
    try:
        os.truncate(ram, MEMORY_MIB << 20)
        with hostile_files() as files:
            yield [ram, *files.values()]
    finally:
        os.close(ram)
