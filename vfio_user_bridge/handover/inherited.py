# SPDX-License-Identifier: BSD-3-Clause
"""What a predecessor left: open files by name, and what it was at with each device's client."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from vfio_user_bridge.counters import Rows
from vfio_user_bridge.device import Take
from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.listener import Listener
from vfio_user_bridge.messages import DmaMap

from .document import Document, making_sense, to_maps, to_rows, unpack
from .journal import Journal
from .names import JOURNAL, LISTENER

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Left:
    """Of one device: all in *document*, but for what is in the journal, if there is one."""

    document: Document
    maps: list[tuple[DmaMap, int]]  # with the number of each one's file
    rows: Rows  # what was counted
    journal: Journal | None
    take: Take
    runs: bool = False  # its bridge does, and goes on if we don't


class Inherited:
    """Open *files* by name, which are ours to close.

    :param documents: of each device, where that isn't in a journal
    :param owned: which of the listening sockets have a file that is ours to remove, with its inode;
        all, without documents: others are the manager's, which has no need of us to pass them on
    """

    def __init__(
        self,
        files: Mapping[str, int] | None = None,
        documents: Iterable[Document] = (),
        owned: Mapping[str, int] | None = None,
    ) -> None:
        self._files = dict(files or {})
        self._owned = owned
        self.left: dict[str, Left] = {}  # by device
        for document in documents:
            journal = self._journal(document["journal"]) if document["journal"] else None
            self._add(document, journal)

    def read_journals(self) -> None:
        """Where there is no other document. Those that make no sense are as good as absent."""
        for name in self._files:
            if name.startswith(JOURNAL):
                try:
                    with making_sense(), ExitStack() as undo:
                        journal = self._journal(name)
                        undo.callback(journal.close)
                        if journal.document:  # else its bridge never had a client
                            self._add(unpack(journal.document), journal)
                            undo.pop_all()
                except BridgeError as error:
                    log.error(
                        "%s of a bridge that was killed is of no use, its client is lost: %s",
                        name,
                        error,
                    )

    def _journal(self, name: str) -> Journal:
        fd = self.take(name)
        try:
            return Journal(fd)
        except BaseException:
            os.close(fd)
            raise

    def _add(self, document: Document, journal: Journal | None) -> None:
        if journal:
            maps, rows = journal.maps(), journal.rows()
        else:
            maps, rows = to_maps(document["maps"]), to_rows(document["rows"])
        runs = self._owned is not None
        self.left[document["name"]] = Left(document, maps, rows, journal, self.take, runs)

    def take(self, name: str) -> int:
        """A descriptor of what is open by that name, the caller's to close: see `device.Take`."""
        try:
            return fcntl.fcntl(self._files[name], fcntl.F_DUPFD_CLOEXEC, 0)
        except KeyError:
            raise BridgeError(f"nothing was left open that is called {name}") from None

    def listener(self, what: str) -> Listener | None:
        """The listening socket for *what*, if one was left."""
        name = LISTENER + what
        if name not in self._files:
            return None
        listener = Listener(socket.socket(fileno=self.take(name)))
        if self._owned is None:
            return listener.owned()
        return listener.owned(self._owned[what]) if what in self._owned else listener

    def close(self, *, listeners: bool = True) -> None:
        """Close what nobody took; of *listeners* too, or leave them for later."""
        for name in list(self._files):
            if listeners or not name.startswith(LISTENER):
                os.close(self._files.pop(name))
