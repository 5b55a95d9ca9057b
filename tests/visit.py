# SPDX-License-Identifier: BSD-3-Clause
"""One client's whole visit to a PCI device: every request that a driver makes, once.

Whoever has paid it without a complaint knows that the device works. What is still set up at its end
is left for the server to take back.
"""

from __future__ import annotations

import os
import select
import time

from . import client as c
from .client import QEMU_CAPABILITIES, Client, version_data
from .descriptors import eventfds, memory_files
from .wire import dma_map, dma_unmap, region, set_irqs, u16, u32, u64

PAGE = 4096
IOVA = 0x100000
BAR0, CONFIG = 0, 7
INTX, MSI, MSIX, REQ = 0, 1, 2, 4
INFO_RESET = 1
# VFIO_IRQ_SET_
NONE, EVENTFD, UNMASK, TRIGGER = 1, 4, 16, 32
#: memory and bus master, of the command register
ENABLE = 0x6
# edu's registers, its buffer, and how long a transfer may take
DMA_SOURCE, DMA_TARGET, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
BUFFER = 0x40000
RUN, TO_MEMORY = 1, 2
PATIENCE = 30.0


class Visit:
    """What *client*, just connected, says.

    :param forgiving: a request may be refused; else each must be granted, and have its effect
    """

    def __init__(self, client: Client, *, forgiving: bool = False) -> None:
        self._client = client
        self._forgiving = forgiving

    def pay(self, *, edu: bool = True) -> None:
        """Say it all, and have edu do DMA if the device is one.

        :raise EOFError, ConnectionError: `client.GONE`
        """
        self._ask(c.VERSION, u16(0, 0) + version_data(QEMU_CAPABILITIES))
        with memory_files(1, 2 * PAGE) as (ram,), eventfds(3) as events:
            can_reset = self._look()
            self._map(ram)
            self._listen(events)
            if edu:
                self._transfer(ram)
            self._ask(c.DMA_UNMAP, dma_unmap(IOVA, 2 * PAGE))
            self._map(ram)
            if can_reset:
                self._ask(c.RESET)

    def _ask(self, command: int, payload: bytes = b"", fds: tuple[int, ...] = ()) -> bytes:
        reply = self._client.call(command, payload, list(fds))
        for fd in reply.fds:
            os.close(fd)
        assert self._forgiving or reply.flags == c.REPLY, (command, os.strerror(reply.error))
        return reply.payload

    def _look(self) -> bool:
        """At what the device has; gives whether it can be reset."""
        info = self._ask(c.GET_INFO, u32(16, 0, 0, 0))
        for index in range(CONFIG + 1):
            self._ask(c.GET_REGION_INFO, u32(4096, 0, index, 0) + u64(0, 0))
        command = self._read(CONFIG, 4, 2) | ENABLE
        self._ask(c.REGION_WRITE, region(4, CONFIG, command.to_bytes(2, "little")))
        return bool(_u32(info, 4) & INFO_RESET)

    def _map(self, ram: int) -> None:
        self._ask(c.DMA_MAP, dma_map(IOVA, 2 * PAGE), (ram,))

    def _listen(self, events: list[int]) -> None:
        """Have an eventfd for each kind of interrupt, and a set of messages that grows."""
        counts = [_u32(self._ask(c.GET_IRQ_INFO, u32(16, 0, kind, 0)), 12) for kind in range(3)]
        if counts[INTX]:
            self._irqs(EVENTFD | TRIGGER, INTX, 0, events[:1])
            self._irqs(EVENTFD | UNMASK, INTX, 0, events[1:2])
            self._ask(c.SET_IRQS, set_irqs(NONE | TRIGGER, INTX, 0, 0))
        self._irqs(EVENTFD | TRIGGER, REQ, 0, events[:1])
        kind = MSIX if counts[MSIX] else MSI
        wanted = events[: max(1, counts[kind])]
        self._irqs(EVENTFD | TRIGGER, kind, 0, wanted[:1])
        if len(wanted) > 1:
            self._irqs(EVENTFD | TRIGGER, kind, 1, wanted[1:])
        self._ask(c.SET_IRQS, set_irqs(NONE | TRIGGER, kind, 0, len(wanted)))
        for event in wanted:
            fired = select.select([event], [], [], 0 if self._forgiving else PATIENCE)[0]
            assert self._forgiving or fired, "an interrupt doesn't arrive"

    def _irqs(self, flags: int, kind: int, start: int, events: list[int]) -> None:
        self._ask(c.SET_IRQS, set_irqs(flags, kind, start, len(events)), tuple(events))

    def _transfer(self, ram: int) -> None:
        """Have edu copy a page to the other, through its buffer."""
        text = os.urandom(PAGE)
        os.pwrite(ram, text, 0)
        self._dma(IOVA, BUFFER, 0)
        self._dma(BUFFER, IOVA + PAGE, TO_MEMORY)
        assert self._forgiving or os.pread(ram, PAGE, PAGE) == text, "DMA doesn't arrive"

    def _dma(self, source: int, target: int, direction: int) -> None:
        for register, value in (
            (DMA_SOURCE, source),
            (DMA_TARGET, target),
            (DMA_COUNT, PAGE),
            (DMA_COMMAND, direction | RUN),
        ):
            self._ask(c.REGION_WRITE, region(register, BAR0, u64(value)))
        deadline = time.monotonic() + PATIENCE
        while self._read(BAR0, DMA_COMMAND, 8) & RUN:
            assert time.monotonic() < deadline, "the device doesn't finish its DMA"

    def _read(self, index: int, offset: int, count: int) -> int:
        """What stands there; 0 if that is refused."""
        payload = self._ask(c.REGION_READ, region(offset, index, count))
        return int.from_bytes(payload[16:], "little")


def _u32(payload: bytes, offset: int) -> int:
    """0 where the reply was a refusal."""
    return int.from_bytes(payload[offset : offset + 4], "little")
