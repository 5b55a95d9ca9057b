# SPDX-License-Identifier: BSD-3-Clause
"""The lists of capabilities in a config space. Names are those of linux/pci_regs.h."""

from __future__ import annotations

from collections.abc import Iterator

STATUS = 0x06
STATUS_CAP_LIST = 0x10
CAPABILITY_LIST = 0x34
FIRST, FIRST_EXTENDED = 0x40, 0x100  # where one can be


def capabilities(config: bytes) -> Iterator[tuple[int, bool, int]]:
    """The ID of each, whether it is an extended one, and where it starts.

    A list that leads nowhere, or in a circle, ends there.
    """
    seen: set[int] = set()
    at = _number(config, CAPABILITY_LIST, 1)
    if not _number(config, STATUS, 2) & STATUS_CAP_LIST:
        at = 0
    while (at := at & ~3) >= FIRST and at not in seen and at + 2 <= len(config):
        seen.add(at)
        yield config[at], False, at
        at = config[at + 1]
    at = FIRST_EXTENDED
    while at >= FIRST_EXTENDED and at not in seen and at + 4 <= len(config):
        seen.add(at)
        identity, following = _number(config, at, 2), _number(config, at + 2, 2)
        if identity == 0xFFFF:
            return
        if identity:  # VFIO hides the first by that, and leaves where the next is (vfio_ecap_init)
            yield identity, True, at
        at = following >> 4 & ~3


def _number(config: bytes, at: int, size: int) -> int:
    return int.from_bytes(config[at : at + size], "little")
