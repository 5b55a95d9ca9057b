# SPDX-License-Identifier: BSD-3-Clause
"""Target: every `unpack` of the wire format.

Property: whatever the bytes, they are a value, or refused with an errno as `protocol` documents
it. What a value packs to, unpacks to that value, and packs to the same again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol, Self

from vfio_user_bridge import messages as m
from vfio_user_bridge.protocol import HEADER, Buffer, Header, ProtocolError, Version


class Value(Protocol):
    @classmethod
    def unpack(cls, payload: Buffer, /) -> Self: ...

    def pack(self) -> bytes: ...


PAYLOADS: tuple[type[Value], ...] = (
    *(Version, m.DmaMap, m.DmaUnmap, m.DeviceInfo, m.RegionInfo, m.RegionIoFds, m.IrqInfo),
    *(m.IrqSet, m.RegionWriteMulti, m.DeviceFeature, m.MigData),
)


@contextmanager
def target() -> Iterator[Callable[[bytes], None]]:
    yield run


def run(data: bytes) -> None:
    """*data* is a message: a header and a payload, which each payload's class has to take."""
    # As they lie in the transport's buffer, which never gives fewer bytes than a header has.
    message = memoryview(data.ljust(HEADER.size, b"\0"))
    header = Header.unpack(message)
    assert header.pack() == message[: HEADER.size]
    payload = message[HEADER.size :]
    for kind in PAYLOADS:
        with refusals():
            check(kind, payload)
    check_replies(payload)


def check(kind: type[Value], payload: Buffer) -> None:
    value = kind.unpack(payload)
    packed = value.pack()
    again = kind.unpack(packed)
    if isinstance(value, m.RegionInfo) and isinstance(again, m.RegionInfo):
        # Packing lays the capabilities out anew: each begins on a multiple of 8, zeros between.
        # ... and says by a flag whether there are any.
        for one, other in zip(value.capabilities, again.capabilities, strict=True):
            assert other.data == one.data.ljust(len(other.data), b"\0")
        flags = value.flags & ~m.REGION_INFO_FLAG_CAPS | again.flags & m.REGION_INFO_FLAG_CAPS
        value = replace(value, flags=flags, capabilities=again.capabilities)
    assert again == value
    assert again.pack() == packed


def check_replies(payload: Buffer) -> None:
    """The replies to the server's own requests, which a client may get wrong too."""
    address, count = m.DMA_ACCESS.unpack(bytes(payload[: m.DMA_ACCESS.size]).ljust(16, b"\0"))
    data = bytes(payload[m.DMA_ACCESS.size :])
    with refusals():
        assert m.DmaRead(address, count).unpack_reply(payload) == data
    with refusals():
        m.DmaWrite(address, data).check_reply(payload)


@contextmanager
def refusals() -> Iterator[None]:
    """The two ways for a peer to be wrong."""
    try:
        yield
    except ProtocolError:
        pass
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
