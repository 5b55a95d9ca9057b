# SPDX-License-Identifier: BSD-3-Clause
"""Asks a device again for all that a trace has, in order, as the client did that is in it.

It goes the way of a client's requests (`requests`), so that a trace, which may come from anywhere,
can ask for nothing that a client couldn't. Eventfds that came are ones that nobody reads; memory is
as large, and at the same IOVA, but all zeros: a trace doesn't have the guest's RAM.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from vfio_user_bridge.device import Device
from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.files import Files
from vfio_user_bridge.messages import REGION_ACCESS, DmaMap, DmaUnmap, IrqSet
from vfio_user_bridge.protocol import Capabilities, Command, refuse
from vfio_user_bridge.requests import Requests
from vfio_user_bridge.state import State
from vfio_user_bridge.transport import Message

from .records import Client, End, Irqs, Map, Read, Record, Reset, Unmap, Write

#: the most that `serve --limit transfer` may have been, in bytes
_TRANSFER = 1 << 30
#: of one device: what PCI_MSIX_FLAGS_QSIZE can say
_VECTORS = 2048

_COMMANDS = {
    Read: Command.REGION_READ,
    Write: Command.REGION_WRITE,
    Irqs: Command.DEVICE_SET_IRQS,
    Map: Command.DMA_MAP,
    Unmap: Command.DMA_UNMAP,
    Reset: Command.DEVICE_RESET,
}


class Replay:
    """Of a trace, on *device*, which is quiesced and reset at the end.

    :param dma: whether to make its DMA maps
    :param memory: how many bytes those may have at a time, of files
    :param paced: whether to keep its timing, from the first record on
    """

    def __init__(
        self, device: Device, *, dma: bool = True, memory: int = 1 << 64, paced: bool = False
    ) -> None:
        self.asked = 0
        self.differing = 0
        self._device = device
        self._dma = dma
        self._memory = memory
        self._paced = paced
        self._ahead: int | None = None  # our clock, of the trace's; once there was a record
        self._greet()

    def _greet(self) -> None:
        """Be a client of the device from now on."""
        maps = self._device.max_dma_maps
        self._state = State(
            Capabilities(max_data_xfer_size=_TRANSFER, max_dma_maps=maps),
            warned_of_private_ram=True,  # that was for another to mend
            files=Files(0),  # each map has its own
        )
        self._handlers = Requests(self._device, self._state).handlers
        self._files: dict[int, int] = {}  # bytes in maps that have one, by IOVA
        self._taken = 0  # all of these

    def run(self, records: Iterable[Record]) -> Generator[tuple[Record, Record], None, None]:
        """What differs: each such record, and what it is now, with another errno or data.

        :raise BridgeError: there is no going on
        """
        left_out = (End,) if self._dma else (End, Map, Unmap)
        asked = (record for record in records if not isinstance(record, left_out))
        try:
            for record in asked:
                now = self._again(record)
                self.asked += 1
                if now != record:
                    self.differing += 1
                    yield record, now
        finally:
            self._part()

    def _part(self) -> None:
        # The device first, its memory after, as a session does it.
        self._device.quiesce(reset=True)
        self._take_back()

    def _take_back(self) -> None:
        for entry in self._state.maps:
            with suppress(OSError):
                self._device.dma_unmap(entry)

    def _again(self, record: Record) -> Record:
        data, number = b"", 0
        try:
            if self._paced:
                self._wait(record.t)
            data = self._do(record)
        except OSError as error:
            number = error.errno or errno.EIO
        except (struct.error, OverflowError):
            raise BridgeError(f"no client can ask for what is at {record.t / 1e9:.6f} s") from None
        if isinstance(record, Read):
            return replace(record, errno=number, data=data)
        return replace(record, errno=number)

    def _wait(self, t: int) -> None:
        """Until it is time for what was at *t*."""
        now = time.monotonic_ns()
        if self._ahead is None:
            self._ahead = now - t
        time.sleep(max(0, t + self._ahead - now) / 1e9)

    def _do(self, record: Record) -> bytes:
        """Gives what was read.

        :raise OSError: it is refused
        """
        match record:
            case Client(came=True):
                self._take_back()
                self._device.prepare()
                self._greet()
            case Client():
                self._device.quiesce(reset=True)
            case Read():
                payload = REGION_ACCESS.pack(record.offset, record.region, record.count)
                return self._ask(record, payload)[REGION_ACCESS.size :]
            case Write():
                payload = REGION_ACCESS.pack(record.offset, record.region, record.count)
                self._ask(record, payload + record.data)
            case Irqs():
                self._set_irqs(record)
            case Map():
                self._map(record)
            case Unmap():
                self._ask(record, DmaUnmap(0, record.iova, record.size).pack())
                self._taken -= self._files.pop(record.iova, 0)
            case Reset():
                self._ask(record, b"")
        return b""

    def _ask(self, record: Record, payload: bytes, fds: Sequence[int] = ()) -> bytes:
        """Gives the reply's payload. *fds* stay the caller's."""
        command = _COMMANDS[type(record)]
        return self._handlers[command](Message(0, command, 0, memoryview(payload), list(fds)))

    def _set_irqs(self, record: Irqs) -> None:
        if record.eventfds > _VECTORS:
            raise refuse(errno.EINVAL, f"{record.eventfds} eventfds")
        request = IrqSet(record.flags, record.index, record.start, record.count, record.data)
        with ExitStack() as undo:
            eventfds = []
            for _ in range(record.eventfds):
                eventfds.append(os.eventfd(0, os.EFD_CLOEXEC))
                undo.callback(os.close, eventfds[-1])
            self._ask(record, request.pack(), eventfds)

    def _map(self, record: Map) -> None:
        payload = DmaMap(record.flags, 0, record.iova, record.size).pack()
        if not record.file:
            self._ask(record, payload)
            return
        if self._taken + record.size > self._memory:
            raise BridgeError(
                f"the guest had more memory than the {self._memory >> 20:,} MiB that are free here:"
                " leave out its DMA maps, by --no-dma"
            )
        fd = os.memfd_create("replay")
        try:
            os.truncate(fd, record.size)
            self._ask(record, payload, [fd])
        finally:
            os.close(fd)
        self._files[record.iova] = record.size
        self._taken += record.size


def available_memory() -> int:
    """MemAvailable of /proc/meminfo, in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(kilobytes) << 10
