# SPDX-License-Identifier: BSD-3-Clause
"""What is written down of a device and its client as things change, should the bridge be killed."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from vfio_user_bridge.device import Keep
from vfio_user_bridge.errors import BridgeError

from .document import of_port, pack
from .journal import DOCUMENT_SIZE, Journal
from .names import JOURNAL, LISTENER, plain
from .store import Holdings, Store

if TYPE_CHECKING:
    from vfio_user_bridge.port import Port

log = logging.getLogger(__name__)


def new_ledger(port: Port, store: Store, left: Journal | None) -> Ledger:
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
    ledger = Ledger(port, journal, store)
    port.device.on_change(ledger.write)
    return ledger


class Ledger:
    """Keeps *journal* up to date with *port*, and *store* with the open files that it takes."""

    def __init__(self, port: Port, journal: Journal, store: Store) -> None:
        self.journal = journal
        self._port = port
        self._store = store
        self._holdings = Holdings(store)
        self._lock = threading.Lock()  # the host's request comes in another thread
        name = plain(port.device.name)
        self._name = JOURNAL + name
        self._always = {self._name: journal.fd}
        if port.listener.path:  # others are kept by who made them
            self._always[LISTENER + name] = port.listener.socket.fileno()
        for name, fd in self._always.items():
            store.keep(name, fd)

    def write(self) -> None:
        """All but the maps. What it takes is kept before that is valid, and until it isn't.

        :raise OSError: the host has no descriptor or memory for it; what was written is valid still
        """
        with self._lock:
            try:
                data = pack(of_port(self._port, self._holdings.keep))
            except BaseException:
                self._holdings.cancel_round()
                raise
            if len(data) > DOCUMENT_SIZE:
                self._holdings.cancel_round()
                name = self._port.device.name
                log.error(
                    "%s: its state takes %d bytes, %d are possible: a crash would lose its client",
                    name,
                    len(data),
                    DOCUMENT_SIZE,
                )
                return
            self.journal.document = data
            released = self._holdings.end_round()
        if released:
            self._store.settle()

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
        self._holdings.end_round()
        while self._always:
            self._store.release(self._always.popitem()[0])
        self._store.settle()
