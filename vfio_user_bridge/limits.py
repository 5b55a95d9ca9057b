# SPDX-License-Identifier: BSD-3-Clause
"""How much of the host one client may have. The defaults leave QEMU all that it asks for."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import UsageError

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def _twice_the_memory() -> int:
    """A guest's RAM can't be more than the host's, but parts of it are mapped at two addresses."""
    return 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _limit(default: float, low: float, high: float, meaning: str) -> Any:
    return field(default=default, metadata={"low": low, "high": high, "meaning": meaning})


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator may set, by name, with ``serve --limit NAME=VALUE``.

    *mapped* is counted for each IOMMU group: of the maps, and once more of the files that they lie
    in, for these are mapped whole. The vectors, regions and message kinds of a client need no
    limit: the device has so many. Nor do messages in flight: one is read at a time, and the others
    wait in the socket's own buffer, which blocks the client when full.
    """

    version: int = _limit(1 << 16, 1 << 10, 1 << 20, "bytes of the first message, JSON included")
    transfer: int = _limit(1 << 20, 1 << 12, 1 << 30, "bytes of data in a message")
    # QEMU refuses a server that takes more than 16 (VFIO_USER_MAX_MAX_FDS).
    fds: int = _limit(16, 1, 253, "file descriptors that come with a message")
    maps: int = _limit(65535, 1, 1 << 24, "DMA maps")
    files: int = _limit(1024, 1, 1 << 20, "files that its DMA maps lie in")
    mapped: int = field(
        default_factory=_twice_the_memory,
        metadata={
            "low": 1 << 12,
            "high": 1 << 62,
            "meaning": "bytes in a group's DMA maps (default: twice the host's memory)",
        },
    )
    stall: float = _limit(10.0, 0.1, 3600, "seconds to finish a message, or to take a reply")
    grace: float = _limit(30.0, 0, 3600, "seconds to let go if the host wants the device")


DEFAULTS = Limits()

#: bytes of a recording
RECORD_LIMIT = 256 << 20
LEAST_RECORD_LIMIT = 64 << 10


def parse(texts: Iterable[str]) -> Limits:
    """Read ``NAME=VALUE`` of each text: a number of things or seconds, or bytes such as 64G.

    :raise UsageError: there is no such limit, or it can't have that value
    """
    known = {limit.name: limit for limit in fields(Limits)}
    given: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in known:
            raise UsageError(f"there is no limit {name!r}; there are: {', '.join(known)}")
        limit = known[name]
        seconds = limit.type == "float"
        number = _seconds(value) if seconds else whole(value)
        low, high = limit.metadata["low"], limit.metadata["high"]
        if not low <= number <= high:  # NaN isn't
            kind = "a number of seconds" if seconds else "a whole number, perhaps with K, M, G or T"
            raise UsageError(f"limit {text!r}: {name} is {kind}, from {low} to {high}")
        given[name] = number
    return Limits(**given)


def whole(text: str) -> float:
    """A number of things, or of bytes such as 64G; NaN if it is none."""
    found = re.fullmatch(r"([0-9]{1,20})([KMGT]?)", text, re.ASCII | re.IGNORECASE)
    return int(found[1]) << _UNITS[found[2].upper()] if found else math.nan


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def described() -> str:
    """The limits, a line each, for --help."""
    lines = []
    for limit in fields(Limits):
        default = "" if limit.name == "mapped" else f" (default: {limit.default:.10g})"
        lines.append(f"  {limit.name:10}{limit.metadata['meaning']}{default}\n")
    return "".join(lines)
