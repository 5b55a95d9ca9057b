# SPDX-License-Identifier: BSD-3-Clause
"""What the bridge knows of a client beyond what the device knows, and who writes that down."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import Protocol

from . import dma
from .counters import Counters, Rows
from .device import Keep
from .eventfd import Kept
from .files import Files
from .messages import IRQ_SET_EVENTFDS, DmaMap, IrqSet, IrqSetFlags
from .outbox import Books
from .protocol import Capabilities

#: by interrupt type and subindex: the eventfd that the device signals, and the client's
Relayed = dict[tuple[int, int], tuple[Kept, Kept]]


class Journal(Books, Protocol):
    """What a message changes."""

    @property
    def begun(self) -> bool:
        """Whether a predecessor was killed over the message that comes next."""

    @property
    def lost(self) -> bool:
        """Whether a predecessor was killed over a message that is gone with it."""

    def again(self) -> int:
        """What it was killed over is tried once more: how often that was so before."""

    def answered(self) -> None:
        """What it was killed over is answered: what comes next is another."""

    def rows(self) -> Rows:
        """What messages are counted in."""

    def add_map(self, entry: DmaMap, file: int) -> None: ...
    def remove_map(self, entry: DmaMap) -> None: ...


class Ledger(Protocol):
    """Where a successor finds all this."""

    @property
    def journal(self) -> Journal:
        """What changes with each message."""

    @property
    def behind(self) -> bool:
        """Whether there is something to write that couldn't be, so far."""

    def note(self) -> None:
        """Something has changed, of which no message is told: whoever may `write` is to do so."""

    def write(self) -> None:
        """All else.

        :raise OSError: it can't be
        """

    def write_or_later(self) -> None:
        """All else, now or when it is `behind`."""

    def client_gone(self) -> None: ...

    def handed(self, keep: Keep) -> str:
        """All this, for a successor that takes over now."""

    def close(self) -> None:
        """Nobody is to go on with the device."""


@dataclass(slots=True)
class State:
    """All that the bridge knows of a client beyond what the device knows."""

    capabilities: Capabilities
    maps: dma.DmaTable = field(default_factory=dma.DmaTable)
    shared_memory: bool = False  # some map came with a file
    warned_of_private_ram: bool = False
    counters: Counters = field(default_factory=Counters)
    #: by interrupt type: bit n is set while vector n has an eventfd
    vectors: dict[int, int] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)
    files: Files = field(default_factory=Files)
    #: by IOVA: which of them a map lies in, for those that have one
    file_of: dict[int, int] = field(default_factory=dict)
    #: eventfds that stand between the device and the client's, where an engine has such
    relayed: Relayed = field(default_factory=dict)
    #: where it is written down as it changes, should we be killed
    ledger: Ledger | None = None
    #: something has, but for maps
    changed: bool = False

    def add_file(self, fd: int | None) -> int:
        """A map is to lie in it: its number, or 0 for none, and written down before there is one.

        :raise OSError: it can't be kept
        """
        file = self.files.add(fd)
        self.shared_memory |= fd is not None
        if self.files.changed:
            try:
                self.write_down()
            except BaseException:
                self.drop_file(file)
                raise
        return file

    def drop_file(self, file: int) -> None:
        """No map lies there, or one less."""
        self.files.drop(file)
        self.changed |= self.files.changed

    def add_map(self, entry: DmaMap, file: int) -> None:
        """*entry* is made, and lies in this one of `files`."""
        self.maps.add(entry)
        if file:
            self.file_of[entry.address] = file
        if self.ledger:
            self.ledger.journal.add_map(entry, file)

    def remove_map(self, entry: DmaMap) -> None:
        """*entry* is undone."""
        self.maps.remove(entry)
        if self.ledger:
            self.ledger.journal.remove_map(entry)
        self.drop_file(self.file_of.pop(entry.address, 0))

    def write_down_or_later(self) -> None:
        """After what can't be taken back: where the host fails, the ledger says so.

        Then it is tried again after the next message, and as the ledger is `behind`.
        """
        with contextlib.suppress(OSError, MemoryError):
            self.write_down()

    def write_down(self) -> None:
        """All but the maps, which are written down as they are made.

        :raise OSError: it can't be
        """
        if self.ledger:
            self.ledger.write()
        self.changed = self.files.changed = False

    def note_irqs(self, request: IrqSet, eventfds: int) -> None:
        """*request* was granted, and so many eventfds came with it."""
        if request.flags & IrqSetFlags.DATA_EVENTFD or not request.count:
            self.changed = True
        if request.flags == IRQ_SET_EVENTFDS:
            bits = (1 << request.count) - 1 << request.start
            before = self.vectors.get(request.index, 0)
            self.vectors[request.index] = before | bits if eventfds else before & ~bits
        elif not request.count:
            self.vectors[request.index] = 0

    def close(self) -> None:
        """Close all that is kept for a successor."""
        self.files.close()
        while self.relayed:
            for event in self.relayed.popitem()[1]:
                event.close()
