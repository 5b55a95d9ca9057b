# SPDX-License-Identifier: BSD-3-Clause
"""The frame of the vfio-user wire format: commands, the header, version and capabilities.

Bytes in, values out: neither this file nor messages.py, which has the payloads, does I/O or knows
the rest of the package. The specification is docs/interop/vfio-user.rst of QEMU; names are its own.
All integers are in the host's byte order ("Protocol Specification"), all sizes in bytes.

Two ways for a peer to be wrong::

    ProtocolError   the stream makes no sense any more: hang up
    OSError         this request is wrong: its errno is the reply, and nothing else happens
"""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Any, ClassVar, Self

Buffer = bytes | bytearray | memoryview


class ProtocolError(Exception):
    """The peer broke the protocol in a way that leaves the stream unusable; hang up."""


class Command(IntEnum):
    """Commands (section "Commands"); 14 belonged to a message that no longer exists."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


# Header flags (section "Header").
TYPE_MASK = 0xF
TYPE_COMMAND = 0x0
TYPE_REPLY = 0x1
FLAG_NO_REPLY = 0x10
FLAG_ERROR = 0x20

#: message ID, command, message size, flags, error
HEADER = Struct("=HHIII")

#: The largest payload around the data of a transfer; bounds a message before its buffer is made.
PAYLOAD_OVERHEAD = 4096


@dataclass(frozen=True, slots=True)
class Header:
    """The 16 bytes before every payload; *size* counts them too."""

    id: int
    command: int
    size: int
    flags: int = TYPE_COMMAND
    error: int = 0

    @classmethod
    def unpack(cls, data: Buffer) -> Self:
        return cls(*HEADER.unpack_from(data))

    def pack(self) -> bytes:
        return HEADER.pack(self.id, self.command, self.size, self.flags, self.error)


def refuse(code: int, why: str) -> OSError:
    """The error for a request that is wrong: its errno goes to the client, *why* to the log."""
    return OSError(code, why)


def fields(fmt: Struct, payload: Buffer) -> tuple[int, ...]:
    """The leading *fmt* of a payload; what follows is the caller's, or a newer peer's: ignored.

    :raise OSError: EINVAL if it is too short
    """
    if len(payload) < fmt.size:
        raise refuse(errno.EINVAL, f"payload of {len(payload)} bytes, at least {fmt.size} needed")
    return fmt.unpack_from(payload)


# ---- Version --------------------------------------------------------------------------------

DEFAULT_DATA_XFER_SIZE = 1 << 20
DEFAULT_DMA_MAPS = 65535
DEFAULT_PGSIZES = 4096


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one side can take, with the specification's defaults for what it doesn't say."""

    max_msg_fds: int = 1
    max_data_xfer_size: int = DEFAULT_DATA_XFER_SIZE
    max_dma_maps: int = DEFAULT_DMA_MAPS
    pgsizes: int = DEFAULT_PGSIZES
    write_multiple: bool = False
    #: what is said; a reply may name only what the proposal named, or QEMU warns its user
    named: frozenset[str] = frozenset(
        ("max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes", "write_multiple")
    )

    @classmethod
    def from_json(cls, data: Buffer) -> Self:
        """Read version data: UTF-8 JSON ended by NUL. Unknown names are ignored.

        :raise OSError: EINVAL if it isn't that, or a known capability has a wrong type or range.
        """
        text = bytes(data)
        if not text:
            return cls()
        if text[-1] != 0:
            raise refuse(errno.EINVAL, "version data doesn't end with NUL")
        try:
            document = json.loads(text[:-1].decode())
        except (ValueError, RecursionError):
            raise refuse(errno.EINVAL, "version data isn't JSON") from None
        caps = document.get("capabilities", {}) if isinstance(document, dict) else None
        if not isinstance(caps, dict):
            raise refuse(errno.EINVAL, "version data isn't an object with capabilities")
        given: dict[str, Any] = {}
        for name in cls().named & caps.keys():
            value, kind = caps[name], bool if name == "write_multiple" else int
            if type(value) is not kind or not 0 <= value < 1 << 64:
                raise refuse(errno.EINVAL, f"capability {name} has a value that it can't have")
            given[name] = value
        return cls(**given, named=frozenset(given))

    def to_json(self) -> bytes:
        caps = {name: getattr(self, name) for name in sorted(self.named)}
        return json.dumps({"capabilities": caps}, separators=(",", ":")).encode() + b"\0"


@dataclass(frozen=True, slots=True)
class Version:
    FORMAT: ClassVar = Struct("=HH")
    major: int
    minor: int
    capabilities: Capabilities

    @classmethod
    def unpack(cls, payload: Buffer) -> Self:
        major, minor = fields(cls.FORMAT, payload)
        return cls(major, minor, Capabilities.from_json(payload[cls.FORMAT.size :]))

    def pack(self) -> bytes:
        return self.FORMAT.pack(self.major, self.minor) + self.capabilities.to_json()
