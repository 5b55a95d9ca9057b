# SPDX-License-Identifier: BSD-3-Clause
"""Bytes written by hand: integers of the specification's sizes, in the host's byte order."""

from __future__ import annotations

import sys


def u16(*values: int) -> bytes:
    return b"".join(value.to_bytes(2, sys.byteorder) for value in values)


def u32(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, sys.byteorder) for value in values)


def u64(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, sys.byteorder) for value in values)


def message(command: int, payload: bytes = b"", *, number: int = 0, flags: int = 0) -> bytes:
    """A command with its header ("Header": ID, command, size, flags, error)."""
    return u16(number, command) + u32(16 + len(payload), flags, 0) + payload


def dma_map(address: int, size: int, *, offset: int = 0, flags: int = 3) -> bytes:
    """The payload of DMA_MAP: argsz, flags, offset, address, size."""
    return u32(32, flags) + u64(offset, address, size)


def dma_unmap(address: int, size: int, *, flags: int = 0) -> bytes:
    """The payload of DMA_UNMAP: argsz, flags, address, size."""
    return u32(24, flags) + u64(address, size)


def region(offset: int, index: int, data: bytes | int) -> bytes:
    """The payload of REGION_WRITE with *data*, or of REGION_READ with a count: offset, region."""
    if isinstance(data, int):
        return u64(offset) + u32(index, data)
    return u64(offset) + u32(index, len(data)) + data


def set_irqs(flags: int, index: int, start: int, count: int, data: bytes = b"") -> bytes:
    """The payload of SET_IRQS: argsz, flags, index, start, count, data."""
    return u32(20 + len(data), flags, index, start, count) + data
