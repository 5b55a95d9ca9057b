# SPDX-License-Identifier: BSD-3-Clause
"""What a trace holds: its header, then a record for each thing that was asked of the device.

The fields are in the order of the format, behind the record's `Kind`. What all have: *t*, when it
came to the device, and *latency*, how long that took, both in nanoseconds, *t* from the header's
time on; *errno*, 0 or what the device refused it with.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from vfio_user_bridge.messages import IrqInfo, RegionInfo

FORMAT = "vfio-user-bridge trace"
VERSION = 1


class Kind(IntEnum):
    READ = 0
    WRITE = 1
    IRQS = 2
    MAP = 3
    UNMAP = 4
    RESET = 5
    CLIENT = 6
    END = 7


@dataclass(frozen=True, slots=True)
class Header:
    """Of which device, and how that was when the recording began."""

    device: str
    bridge: str  # version
    time: int  # wall clock at t = 0, in nanoseconds since the epoch
    regions: tuple[RegionInfo, ...]  # those that there are
    irqs: tuple[IrqInfo, ...]
    config: bytes  # config space, up to 4096 bytes; none if it couldn't be read


@dataclass(frozen=True, slots=True)
class Read:
    t: int
    latency: int
    errno: int
    region: int
    offset: int
    count: int
    data: bytes  # fewer than *count* where the device gave fewer; none if it refused


@dataclass(frozen=True, slots=True)
class Write:
    t: int
    latency: int
    errno: int
    region: int
    offset: int
    count: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Irqs:
    """``VFIO_DEVICE_SET_IRQS``, as `messages.IrqSet`; *eventfds* is how many came with it."""

    t: int
    latency: int
    errno: int
    index: int
    flags: int
    start: int
    count: int
    eventfds: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Map:
    """A DMA map of *size* bytes at *iova*; *file* tells whether memory came with it."""

    t: int
    latency: int
    errno: int
    iova: int
    size: int
    flags: int
    file: bool


@dataclass(frozen=True, slots=True)
class Unmap:
    t: int
    latency: int
    errno: int
    iova: int
    size: int


@dataclass(frozen=True, slots=True)
class Reset:
    t: int
    latency: int
    errno: int


@dataclass(frozen=True, slots=True)
class Client:
    """A client *came*, or went."""

    t: int
    latency: int
    errno: int
    came: bool


@dataclass(frozen=True, slots=True)
class End:
    """The recording's, which isn't there after a crash; *reason* is stopped, limit or closed."""

    t: int
    latency: int
    errno: int
    reason: str


Access = Read | Write
Record = Access | Irqs | Map | Unmap | Reset | Client | End

RECORDS: dict[int, type[Record]] = {
    Kind.READ: Read,
    Kind.WRITE: Write,
    Kind.IRQS: Irqs,
    Kind.MAP: Map,
    Kind.UNMAP: Unmap,
    Kind.RESET: Reset,
    Kind.CLIENT: Client,
    Kind.END: End,
}
KINDS: dict[type[Record], Kind] = {record: Kind(number) for number, record in RECORDS.items()}
