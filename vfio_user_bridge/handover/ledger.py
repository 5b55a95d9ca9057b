# SPDX-License-Identifier: BSD-3-Clause
"""What is written down of a device and its client as things change, should the bridge be killed."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from vfio_user_bridge.device import Keep
from vfio_user_bridge.errors import BridgeError

from .document import of_port, pack
from .journal import DOCUMENT_SIZE, Journal
from .names import JOURNAL, LISTENER, plain
from .store import Held, NotKeptError, Store

if TYPE_CHECKING:
    from vfio_user_bridge.port import Port

log = logging.getLogger(__name__)


def new_ledger(
    port: Port, store: Store, left: Journal | None, wake: Callable[[], None] = lambda: None
) -> Ledger:
    """In the journal that a predecessor *left*, or one of its own.

    :raise BridgeError: there can't be one
    """
    try:
        journal = left or Journal.create(port.device.max_dma_maps)
    except OSError as error:
        raise BridgeError(
            f"{port.device.name}: can't have a journal: {error.strerror}; ulimit -n may be too low"
        ) from None
    port.device.cells(journal.cells)
    ledger = Ledger(port, journal, store, wake)
    port.device.on_change(ledger.write_or_later)
    return ledger


class Ledger:
    """Keeps *journal* up to date with *port*, and *store* with the open files that it takes.

    :param wake: whoever looks whether we are `behind` does so
    """

    def __init__(
        self, port: Port, journal: Journal, store: Store, wake: Callable[[], None]
    ) -> None:
        self.journal = journal
        self._wake = wake
        self._port = port
        self._store = store
        self._held = Held(store)
        self._noted = self._written = 0
        self._warned = False  # of what a crash would lose
        self._lock = threading.Lock()  # the host's request comes in another thread
        name = plain(port.device.name)
        self._name = JOURNAL + name
        self._always = {self._name: journal.fd}
        if port.listener.path:  # others are kept by who made them
            self._always[LISTENER + name] = port.listener.socket.fileno()
        try:
            self._keep_always()
        except NotKeptError as error:
            self._fall_behind(str(error))
        self._held.end_round()

    @property
    def behind(self) -> bool:
        """Whether `write` is to be called, once it can be."""
        return self._written != self._noted or self._store.owes

    def note(self) -> None:
        """Now it is, for what no message has changed."""
        self._noted += 1
        self._wake()

    def write_or_later(self) -> None:
        """Where the host fails, the log says so, and it is to be tried again: we are `behind`."""
        with contextlib.suppress(OSError, MemoryError):
            self.write()

    def write(self) -> None:
        """All but the maps. What it takes is kept before that is valid, and until it isn't.

        Where it can't be, what was written is valid still, and we are `behind`.

        :raise OSError: the host has no descriptor or memory for it; a manager that can't be told is
            in nobody's way
        """
        with self._lock:
            noted, owed = self._noted, self._store.owes
            try:
                self._keep_always()
                data = pack(of_port(self._port, self._held.keep))
            except BaseException as error:
                self._held.cancel_round()
                if isinstance(error, (OSError, MemoryError)):
                    self._fall_behind(str(error) or "no memory")
                if isinstance(error, NotKeptError):
                    return
                raise
            self._written = noted
            if len(data) > DOCUMENT_SIZE:
                self._held.cancel_round()
                name = self._port.device.name
                log.error(
                    "%s: its state takes %d bytes, %d are possible: a crash would lose its client",
                    name,
                    len(data),
                    DOCUMENT_SIZE,
                )
                return
            self.journal.document = data
            self._warned = False
            released = self._held.end_round()
        if released or owed:
            self._store.settle()
            if self._store.owes and not owed:
                self._wake()

    def _keep_always(self) -> None:
        for name, fd in self._always.items():
            self._held.keep(name, fd)

    def _fall_behind(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            self.note()
            log.error(
                "%s: its state can't be written down: %s: until it is, a crash would lose its"
                " client",
                self._port.device.name,
                why,
            )

    def client_gone(self) -> None:
        """The port has none: what is closed from now on is closed, here and in the store."""
        self.write()
        self.journal.forget_client()

    def handed(self, keep: Keep) -> str:
        """The journal, for a successor that takes over now."""
        return keep(self._name, self.journal.fd)

    def close(self) -> None:
        """Nobody is to go on with the device, which is closed next."""
        self._port.device.on_change(lambda: None)
        self._held.end_round()
        self._store.settle()
