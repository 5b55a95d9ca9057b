# SPDX-License-Identifier: BSD-3-Clause
"""A client of edu that works all the time, and knows to the bit what each reply must be."""

from __future__ import annotations

import errno
import os
import random
import select
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests import client as c
from tests.client import Client, Reply
from tests.descriptors import eventfds, memory_files
from tests.visit import (
    BAR0,
    BUFFER,
    CONFIG,
    DMA_COMMAND,
    DMA_COUNT,
    DMA_SOURCE,
    DMA_TARGET,
    ENABLE,
    EVENTFD,
    INTX,
    IOVA,
    MSI,
    NONE,
    PAGE,
    RUN,
    TO_MEMORY,
    TRIGGER,
    UNMASK,
)
from tests.wire import dma_map, dma_unmap, message, region, set_irqs, u32

IRQ_RAISE, IRQ_ACKNOWLEDGE = 0x60, 0x64
#: registers that hold what is written to them: region, offset, size
REGISTERS = (
    (BAR0, DMA_SOURCE, 8),
    (BAR0, DMA_TARGET, 8),
    (BAR0, DMA_COUNT, 8),
    (CONFIG, 0x3C, 1),  # Interrupt Line
)
#: requests that are on their way at once, at most
MOST = 40
PATIENCE = 20.0  # seconds, for an interrupt

Register = tuple[int, int, int]


@dataclass(frozen=True)
class Request:
    command: int
    payload: bytes = b""
    fds: tuple[int, ...] = ()

    @property
    def may_be_done_again(self) -> bool:
        """A bridge that was killed over it must not answer with an error."""
        access = self.command in (c.REGION_READ, c.REGION_WRITE)
        return not access or self.payload[8:12] != u32(BAR0)


def read(register: Register) -> Request:
    index, offset, size = register
    return Request(c.REGION_READ, region(offset, index, size))


def write(register: Register, value: int) -> Request:
    index, offset, size = register
    return Request(c.REGION_WRITE, region(offset, index, value.to_bytes(size, "little")))


class Hammer:
    """What *client*, just connected, does.

    :param chance: what is done is left to it
    :param kills: gives how often the bridge has been killed so far. A request that it was killed
        over may be answered with EIO; one that may be done again, if it was killed twice
    """

    def __init__(self, client: Client, chance: random.Random, kills: Callable[[], int]) -> None:
        self._client = client
        self._chance = chance
        self._kills = kills
        self._number = 0
        self.answered = 0
        self.errors = 0
        self.rounds = 0
        #: what each may hold
        self._held: dict[Register, set[int]] = {}
        client.negotiate()
        self._begin()

    def strike(self) -> None:
        """One round of something."""
        chance = self._chance
        chance.choice((self._access, self._flood, self._dma, self._msi, self._intx, self._start))()
        self.rounds += 1

    def end(self) -> None:
        """No reply is left over."""
        assert not select.select([self._client.socket], [], [], 0.05)[0], "a stray reply"

    # ---- Requests and replies -----------------------------------------------------------------

    def _ask(self, requests: Sequence[Request]) -> list[Reply]:
        """Send them all at once; each must be answered, in order, and as it may be."""
        kills = self._kills()
        pending, first = b"", self._number
        for request in requests:
            self._number = self._number + 1 & 0xFFFF
            data = message(request.command, request.payload, number=self._number)
            if request.fds:
                self._client.socket.sendall(pending)
                pending = b""
                socket.send_fds(self._client.socket, [data], request.fds)
            else:
                pending += data
        self._client.socket.sendall(pending)
        replies = []
        for nth, request in enumerate(requests, 1):
            reply = self._client.receive()
            expected = (first + nth & 0xFFFF, request.command)
            assert (reply.number, reply.command) == expected, (reply, expected)
            assert not reply.fds
            if reply.flags != c.REPLY:
                assert reply.flags == c.REPLY | c.ERROR, reply
                assert reply.error == errno.EIO, (request, os.strerror(reply.error))
                least = 2 if request.may_be_done_again else 1
                assert self._kills() - kills >= least, f"EIO to {request}"
                self.errors += 1
            replies.append(reply)
            self.answered += 1
        return replies

    def _do(self, *requests: Request) -> None:
        """Until none of them is answered with an error."""
        while any(reply.error for reply in self._ask(requests)):
            pass

    # ---- Registers ----------------------------------------------------------------------------

    def _begin(self) -> None:
        self._do(Request(c.RESET))
        self._held = {register: {0} for register in REGISTERS}
        self._do(Request(c.REGION_WRITE, region(4, CONFIG, ENABLE.to_bytes(2, "little"))))

    def _start(self) -> None:
        if not self._chance.randrange(4):
            self._begin()

    def _access(self) -> None:
        """One after the other."""
        for _ in range(self._chance.randrange(MOST)):
            self._accesses(1)

    def _flood(self) -> None:
        """Many at once."""
        self._accesses(self._chance.randrange(2, MOST))

    def _accesses(self, count: int) -> None:
        chance = self._chance
        asked = [
            (register, chance.choice((None, chance.getrandbits(8 * register[2]))))
            for register in chance.choices(REGISTERS, k=count)
        ]
        requests = [read(at) if value is None else write(at, value) for at, value in asked]
        for (register, value), reply in zip(asked, self._ask(requests), strict=True):
            held = self._held[register]
            if value is not None:
                self._held[register] = held | {value} if reply.error else {value}
            elif not reply.error:
                found = int.from_bytes(reply.payload[16:], "little")
                assert found in held, (register, found, held)
                self._held[register] = {found}

    # ---- DMA ----------------------------------------------------------------------------------

    def _dma(self) -> None:
        """Map many pages, have one copied to another, and unmap them."""
        chance, count = self._chance, self._chance.randrange(2, MOST)
        files = chance.randrange(1, min(count, 8))
        with memory_files(files, count * PAGE) as ram:
            places = [(chance.choice(ram), number * PAGE) for number in range(count)]
            self._map(places)
            source, target = chance.sample(range(count), 2)
            text = os.urandom(PAGE)
            os.pwrite(places[source][0], text, places[source][1])
            self._transfer(IOVA + source * PAGE, BUFFER, 0)
            self._transfer(BUFFER, IOVA + target * PAGE, TO_MEMORY)
            assert os.pread(places[target][0], PAGE, places[target][1]) == text, "DMA goes astray"
            self._unmap(count)

    def _map(self, places: list[tuple[int, int]]) -> None:
        requests = [
            Request(c.DMA_MAP, dma_map(IOVA + number * PAGE, PAGE, offset=offset), (file,))
            for number, (file, offset) in enumerate(places)
        ]
        for request, reply in zip(requests, self._ask(requests), strict=True):
            while reply.error:
                address = int.from_bytes(request.payload[16:24], "little")
                self._do(Request(c.DMA_UNMAP, dma_unmap(address, PAGE)))
                (reply,) = self._ask([request])

    def _unmap(self, count: int) -> None:
        if self._chance.randrange(2):
            self._do(Request(c.DMA_UNMAP, dma_unmap(0, 0, flags=2)))
        else:
            pages = [dma_unmap(IOVA + number * PAGE, PAGE) for number in range(count)]
            self._do(*(Request(c.DMA_UNMAP, page) for page in pages))

    def _transfer(self, source: int, target: int, direction: int) -> None:
        values = {DMA_SOURCE: source, DMA_TARGET: target, DMA_COUNT: PAGE}
        self._do(
            *(write((BAR0, register, 8), value) for register, value in values.items()),
        )
        self._held |= {(BAR0, register, 8): {value} for register, value in values.items()}
        self._do(write((BAR0, DMA_COMMAND, 8), direction | RUN))

    # ---- Interrupts ---------------------------------------------------------------------------

    def _irqs(self, flags: int, kind: int, events: Sequence[int]) -> None:
        count = len(events)
        self._do(Request(c.SET_IRQS, set_irqs(flags, kind, 0, count), tuple(events)))

    def _msi(self) -> None:
        with eventfds(2) as events:
            for event in events[: self._chance.randrange(1, 3)]:
                self._irqs(EVENTFD | TRIGGER, MSI, [event])
                errors = self.errors
                self._do(write((BAR0, IRQ_RAISE, 4), 1))
                assert 1 <= _fired(event) <= 1 + self.errors - errors, "interrupts too many"
                self._do(write((BAR0, IRQ_ACKNOWLEDGE, 4), 1))
            self._irqs(NONE | TRIGGER, MSI, [])

    def _intx(self) -> None:
        """A line that is held is masked as it fires, until the client says that it may again."""
        with eventfds(2) as (event, unmask):
            self._irqs(EVENTFD | TRIGGER, INTX, [event])
            self._irqs(EVENTFD | UNMASK, INTX, [unmask])
            self._do(write((BAR0, IRQ_RAISE, 4), 1))
            for _ in range(self._chance.randrange(1, 4)):
                _fired(event)
                os.eventfd_write(unmask, 1)
            _fired(event)
            self._do(write((BAR0, IRQ_ACKNOWLEDGE, 4), 1))
            os.eventfd_write(unmask, 1)
            self._irqs(NONE | TRIGGER, INTX, [])


def _fired(event: int) -> int:
    """Wait until it has; gives how often."""
    assert select.select([event], [], [], PATIENCE)[0], "an interrupt doesn't arrive"
    return os.eventfd_read(event)
