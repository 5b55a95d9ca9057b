# SPDX-License-Identifier: BSD-3-Clause
"""The QEMU arguments that connect a virtual machine to vfio-user sockets. QEMU 10.1 or later."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from .errors import UsageError

DEFAULT_MEMORY = "4G"
#: milliseconds that QEMU waits for a reply; its own 5 s don't do for much RAM in small pages
PATIENCE = 60_000


def arguments(sockets: Iterable[Path], memory: str = DEFAULT_MEMORY) -> list[str]:
    """Arguments for a q35 machine with *memory* of RAM that the devices behind *sockets* can reach.

    Shared memory is what makes DMA possible: QEMU sends its file to the bridge. *memory* is a size
    as QEMU writes it, in MiB without a suffix.

    :raise UsageError: *memory* is no such size
    """
    memory_size(memory)
    # -m takes a bare number as MiB, an object's size as bytes.
    size = memory if memory[-1].isalpha() else f"{memory}M"
    return [
        "-object",
        f"memory-backend-memfd,id=mem,size={size},share=on",
        "-machine",
        "q35,memory-backend=mem",
        "-m",
        size,
        *(word for path in sockets for word in ("-device", compact(device(path)))),
    ]


def memory_size(text: str) -> int:
    """The bytes of a size as `arguments` takes it.

    :raise UsageError: it is no such size
    """
    found = re.fullmatch(r"([1-9][0-9]{0,9})([MGT]?)", text, re.ASCII | re.IGNORECASE)
    if not found:
        raise UsageError(f"{text!r} is not a memory size: write it as 4G or 512M")
    return int(found[1]) << {"": 20, "M": 20, "G": 30, "T": 40}[found[2].upper()]


def device(socket: Path) -> dict[str, object]:
    """The properties of ``-device`` for what is behind *socket*; a place on a bus may be added."""
    return {
        "driver": "vfio-user-pci",
        "socket": {"type": "unix", "path": str(socket.absolute())},
        "x-msg-timeout": PATIENCE,
    }


def compact(properties: object) -> str:
    """As a word of the command line."""
    return json.dumps(properties, separators=(",", ":"), ensure_ascii=False)
