# SPDX-License-Identifier: BSD-3-Clause
"""Traces made by hand, as docs/developers/trace-format.md has them, by msgpack itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack

#: 2020-01-02 03:04:05 UTC
TIME = 1_577_934_245_000_000_000
HEADER: dict[str, Any] = {
    "format": "vfio-user-bridge trace",
    "version": 1,
    "device": "edu",
    "bridge": "9.8.7",
    "time": TIME,
    "regions": [[0, 3, 1 << 20], [7, 3, 256]],
    "irqs": [[0, 7, 1], [1, 9, 1]],
    "config": b"",
}
END = [7, 9_000_000, 0, 0, "stopped"]


def packed(*objects: object) -> bytes:
    return b"".join(msgpack.packb(each) for each in objects)


def write(
    path: Path, *records: Sequence[object], header: Mapping[str, object] = HEADER, tail: bytes = b""
) -> Path:
    """A trace of these records, each as the format has it, and no END but among them."""
    path.write_bytes(packed(header, *records) + tail)
    return path


def config_space(*words: tuple[int, int, int], size: int = 256) -> bytes:
    """Config space with values at offsets, little-endian: (offset, size, value) each."""
    config = bytearray(size)
    for offset, length, value in words:
        config[offset : offset + length] = value.to_bytes(length, "little")
    return bytes(config)
