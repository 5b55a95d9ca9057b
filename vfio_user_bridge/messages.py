# SPDX-License-Identifier: BSD-3-Clause
"""The payloads of the vfio-user wire format, one frozen value each.

Each has its ``FORMAT`` beside it, ``unpack(payload)`` for what a peer sent and ``pack()`` for what
goes out; sections of the specification are named as the classes are. Where the request and the
reply share a layout, as VFIO's structures do, one class serves both.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import IntFlag
from struct import Struct
from typing import ClassVar, Self

from .protocol import Buffer, ProtocolError, fields, refuse

# ---- DMA ------------------------------------------------------------------------------------


class DmaFlags(IntFlag):
    READ = 1
    WRITE = 2


_WRITE = int(DmaFlags.WRITE)  # to combine enumerations takes a microsecond


@dataclass(frozen=True, slots=True)
class DmaMap:
    """Client memory at *address* (IOVA), *size* bytes, at *offset* in the file sent along."""

    FORMAT: ClassVar = Struct("=IIQQQ")
    flags: int
    offset: int
    address: int
    size: int

    @classmethod
    def unpack(cls, payload: Buffer) -> Self:
        _argsz, flags, offset, address, size = fields(cls.FORMAT, payload)
        return cls(flags, offset, address, size)

    @property
    def writable(self) -> bool:
        return bool(self.flags & _WRITE)

    def pack(self) -> bytes:
        return self.FORMAT.pack(self.FORMAT.size, self.flags, self.offset, self.address, self.size)


#: linux/vfio.h; QEMU sends it when all maps go at once.
DMA_UNMAP_FLAG_ALL = 1 << 1


@dataclass(frozen=True, slots=True)
class DmaUnmap:
    FORMAT: ClassVar = Struct("=IIQQ")
    flags: int
    address: int
    size: int

    @classmethod
    def unpack(cls, payload: Buffer) -> Self:
        _argsz, flags, address, size = fields(cls.FORMAT, payload)
        return cls(flags, address, size)

    def pack(self) -> bytes:
        return self.FORMAT.pack(self.FORMAT.size, self.flags, self.address, self.size)


#: address, count: the head of DMA_READ and DMA_WRITE, requests of the server to the client
DMA_ACCESS = Struct("=QQ")


@dataclass(frozen=True, slots=True)
class DmaRead:
    """Server to client: give me *count* bytes at *address*. The reply carries *data*."""

    address: int
    count: int

    def pack(self) -> bytes:
        return DMA_ACCESS.pack(self.address, self.count)

    def unpack_reply(self, payload: Buffer) -> bytes:
        """The bytes read.

        :raise ProtocolError: the reply belongs to another request or is shorter than it says
        """
        if len(payload) != DMA_ACCESS.size + self.count or bytes(
            payload[: DMA_ACCESS.size]
        ) != DMA_ACCESS.pack(self.address, self.count):
            raise ProtocolError("the reply to DMA_READ doesn't match its request")
        return bytes(payload[DMA_ACCESS.size :])


@dataclass(frozen=True, slots=True)
class DmaWrite:
    """Server to client: put *data* at *address*."""

    REPLY: ClassVar = Struct("=QI")  # the specification gives count 4 bytes in this reply only
    address: int
    data: bytes

    def pack(self) -> bytes:
        return DMA_ACCESS.pack(self.address, len(self.data)) + self.data

    def check_reply(self, payload: Buffer) -> None:
        """:raise ProtocolError: the reply belongs to another request"""
        expected = self.REPLY.pack(self.address, len(self.data))
        if bytes(payload[: self.REPLY.size]) != expected:
            raise ProtocolError("the reply to DMA_WRITE doesn't match its request")


# ---- Device, regions, interrupts ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """``struct vfio_device_info``: how many regions and interrupt types there are."""

    FORMAT: ClassVar = Struct("=IIII")
    flags: int
    num_regions: int
    num_irqs: int

    @classmethod
    def unpack(cls, payload: Buffer) -> Self:
        _argsz, flags, regions, irqs = fields(cls.FORMAT, payload)
        return cls(flags, regions, irqs)

    def pack(self) -> bytes:
        return self.FORMAT.pack(self.FORMAT.size, self.flags, self.num_regions, self.num_irqs)


@dataclass(frozen=True, slots=True)
class RegionCapability:
    """One entry of a region's capability chain; *data* follows the chain's own 8-byte header."""

    FORMAT: ClassVar = Struct("=HHI")  # struct vfio_info_cap_header: id, version, next
    id: int
    version: int
    data: bytes


#: VFIO_REGION_INFO_FLAG_CAPS; packing sets it where capabilities follow
REGION_INFO_FLAG_CAPS = 1 << 3


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """``struct vfio_region_info`` and the capabilities behind it.

    *offset* is where the region starts in the file that goes to the client with it.
    """

    FORMAT: ClassVar = Struct("=IIIIQQ")
    index: int
    flags: int = 0
    size: int = 0
    offset: int = 0
    capabilities: tuple[RegionCapability, ...] = ()

    @classmethod
    def unpack(cls, payload: Buffer) -> Self:
        """:raise OSError: EINVAL if the capability chain leaves the payload or runs backwards"""
        argsz, flags, index, at, size, offset = fields(cls.FORMAT, payload)
        entries: list[tuple[int, int, int]] = []
        previous = cls.FORMAT.size - 1
        while at:
            if at <= previous or at + RegionCapability.FORMAT.size > len(payload):
                raise refuse(errno.EINVAL, f"region {index}: bad capability chain at {at}")
            previous = at
            kind, version, at = RegionCapability.FORMAT.unpack_from(payload, at)
            entries.append((kind, version, previous + RegionCapability.FORMAT.size))
        ends = [start - RegionCapability.FORMAT.size for _, _, start in entries[1:]]
        ends.append(min(argsz, len(payload)))
        caps = tuple(
            RegionCapability(kind, version, bytes(payload[start:end]))
            for (kind, version, start), end in zip(entries, ends, strict=False)
        )
        return cls(index, flags, size, offset, caps)

    def pack(self, room: int = 1 << 32) -> bytes:
        """The reply; each capability starts on a multiple of 8, as in the kernel's chain.

        If it needs more than *room* bytes, it goes without capabilities, and its argsz says how
        many it needs ("Message sizes").
        """
        chain = bytearray()
        at = self.FORMAT.size
        for number, cap in enumerate(self.capabilities, 1):
            length = -(-(RegionCapability.FORMAT.size + len(cap.data)) // 8) * 8
            following = at + length if number < len(self.capabilities) else 0
            entry = RegionCapability.FORMAT.pack(cap.id, cap.version, following) + cap.data
            chain += entry.ljust(length, b"\0")
            at += length
        flags = self.flags & ~REGION_INFO_FLAG_CAPS
        first = 0
        if chain and at <= room:
            flags |= REGION_INFO_FLAG_CAPS
            first = self.FORMAT.size
        head = self.FORMAT.pack(at, flags, self.index, first, self.size, self.offset)
        return head + chain if first else head


@dataclass(frozen=True, slots=True)
class RegionIoFds:
    """GET_REGION_IO_FDS; a device without such sub-regions answers with a *count* of 0."""

    FORMAT: ClassVar = Struct("=IIII")
    index: int
    flags: int = 0
    count: int = 0

    @classmethod
    def unpack(cls, payload: Buffer) -> Self:
        _argsz, flags, index, count = fields(cls.FORMAT, payload)
        return cls(index, flags, count)

    def pack(self) -> bytes:
        return self.FORMAT.pack(self.FORMAT.size, self.flags, self.index, self.count)


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """``struct vfio_irq_info``: *count* interrupts of type *index*."""

    FORMAT: ClassVar = Struct("=IIII")
    index: int
    flags: int = 0
    count: int = 0

    @classmethod
    def unpack(cls, payload: Buffer) -> Self:
        _argsz, flags, index, count = fields(cls.FORMAT, payload)
        return cls(index, flags, count)

    def pack(self) -> bytes:
        return self.FORMAT.pack(self.FORMAT.size, self.flags, self.index, self.count)


class IrqSetFlags(IntFlag):
    """``VFIO_IRQ_SET_*``: exactly one DATA and one ACTION flag each."""

    DATA_NONE = 1
    DATA_BOOL = 2
    DATA_EVENTFD = 4
    ACTION_MASK = 8
    ACTION_UNMASK = 16
    ACTION_TRIGGER = 32


#: these interrupts get eventfds, or lose them
IRQ_SET_EVENTFDS = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_TRIGGER
#: with a count of 0, all of a type are switched off
IRQ_SET_OFF = IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_TRIGGER


@dataclass(frozen=True, slots=True)
class IrqSet:
    """``struct vfio_irq_set``: do *flags* to subindexes *start* to *start* + *count*.

    *data* is one byte for each subindex with DATA_BOOL, else empty: eventfds travel beside the
    message, and none at all means that these interrupts lose theirs.
    """

    FORMAT: ClassVar = Struct("=IIIII")
    flags: int
    index: int
    start: int
    count: int
    data: bytes = b""

    @classmethod
    def unpack(cls, payload: Buffer) -> Self:
        argsz, flags, index, start, count = fields(cls.FORMAT, payload)
        if not cls.FORMAT.size <= argsz <= len(payload):
            raise refuse(errno.EINVAL, f"argsz {argsz} in a payload of {len(payload)} bytes")
        return cls(flags, index, start, count, bytes(payload[cls.FORMAT.size : argsz]))

    def pack(self) -> bytes:
        argsz = self.FORMAT.size + len(self.data)
        return self.FORMAT.pack(argsz, self.flags, self.index, self.start, self.count) + self.data


# ---- Region access --------------------------------------------------------------------------

#: offset, region, count: the head of REGION_READ and REGION_WRITE and of their replies. There is
#: no class for these: they are the trapped accesses, and a value each would cost.
REGION_ACCESS = Struct("=QII")


@dataclass(frozen=True, slots=True)
class RegionWriteMulti:
    """Several writes of 8 bytes or less in one message: (region, offset, data) each."""

    FORMAT: ClassVar = Struct("=Q")  # also the reply: the number of writes done
    ENTRY: ClassVar = Struct("=QII8s")
    writes: tuple[tuple[int, int, bytes], ...]

    @classmethod
    def unpack(cls, payload: Buffer) -> Self:
        (count,) = fields(cls.FORMAT, payload)
        if len(payload) != cls.FORMAT.size + count * cls.ENTRY.size:
            raise refuse(errno.EINVAL, f"{count} writes don't fill a payload of {len(payload)}")
        writes = []
        for offset, region, size, data in cls.ENTRY.iter_unpack(payload[cls.FORMAT.size :]):
            if size > len(data):
                raise refuse(errno.EINVAL, f"a write of {size} bytes; 8 are possible")
            writes.append((region, offset, data[:size]))
        return cls(tuple(writes))

    def pack(self) -> bytes:
        entries = (self.ENTRY.pack(at, region, len(data), data) for region, at, data in self.writes)
        return self.FORMAT.pack(len(self.writes)) + b"".join(entries)


# ---- Features and migration -----------------------------------------------------------------


class FeatureFlags(IntFlag):
    """``VFIO_DEVICE_FEATURE_*``: what to do with the feature in the low 16 bits."""

    MASK = 0xFFFF
    GET = 1 << 16
    SET = 1 << 17
    PROBE = 1 << 18


@dataclass(frozen=True, slots=True)
class DeviceFeature:
    """``struct vfio_device_feature``; *argsz* in a request is the most that a reply may hold."""

    FORMAT: ClassVar = Struct("=II")
    argsz: int
    flags: int
    data: bytes = b""

    @classmethod
    def unpack(cls, payload: Buffer) -> Self:
        argsz, flags = fields(cls.FORMAT, payload)
        return cls(argsz, flags, bytes(payload[cls.FORMAT.size :]))

    def pack(self) -> bytes:
        return self.FORMAT.pack(self.argsz, self.flags) + self.data


@dataclass(frozen=True, slots=True)
class MigData:
    """MIG_DATA_READ and MIG_DATA_WRITE: *size* bytes of migration stream; a read asks without."""

    FORMAT: ClassVar = Struct("=II")
    size: int
    data: bytes = b""

    @classmethod
    def unpack(cls, payload: Buffer) -> Self:
        _argsz, size = fields(cls.FORMAT, payload)
        return cls(size, bytes(payload[cls.FORMAT.size :]))

    def pack(self) -> bytes:
        return self.FORMAT.pack(self.FORMAT.size + len(self.data), self.size) + self.data
