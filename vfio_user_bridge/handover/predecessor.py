# SPDX-License-Identifier: BSD-3-Clause
"""What was before this process: a bridge that was killed, or one that still runs."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from vfio_user_bridge.errors import BridgeError, UsageError
from vfio_user_bridge.listener import Listener
from vfio_user_bridge.notify import Manager

from .document import making_sense
from .inherited import Inherited, Left
from .link import ToPredecessor
from .names import LINK_VARIABLE, STDIO
from .nobody import Nobody
from .store import Store

log = logging.getLogger(__name__)


class _Somebody(Nobody):
    found = True

    def __init__(self, inherited: Inherited) -> None:
        self._inherited = inherited
        self.left = inherited.left

    def listener(self, what: str) -> Listener | None:
        return self._inherited.listener(what)

    def close(self) -> None:
        """Close what nobody took."""
        self._inherited.close()


class Killed(_Somebody):
    """Its files come from the service manager, by name."""

    def __init__(self, files: Mapping[str, int]) -> None:
        super().__init__(Inherited(files))
        self.kept = tuple(files)
        self._store: Store | None = None
        self._resumed: list[str] = []
        self._inherited.read_journals()
        clients = [name for name, left in self.left.items() if left.document["client"]]
        log.warning(
            "a bridge was killed here; going on with its clients: %s", ", ".join(clients) or "none"
        )

    def store(self, manager: Manager) -> Store | None:
        self._store = super().store(manager)
        return self._store

    def resume(self, offer: Callable[[str, Left], None]) -> list[str]:
        # Without a client the device is opened anew, and its group may be another's with one.
        for name in sorted(self.left, key=lambda name: not self.left[name].document["client"]):
            left = self.left[name]
            try:
                with making_sense():
                    offer(name, left)
                self._resumed.append(name)
            except UsageError:
                raise  # of a policy, say: the next to be started may find it mended
            except BridgeError as error:
                log.error("%s: can't go on where its bridge was killed: %s", name, error)
                if left.journal:
                    left.journal.close()
        # What nobody has taken is in the way of who opens it anew. But who comes to a device that
        # had no client waits at its socket meanwhile.
        self._sweep(listeners=False)
        return self._resumed

    @contextlib.contextmanager
    def or_it_goes_on(self) -> Iterator[None]:
        # What is in the store may yet serve the next to be started; so nothing is undone here.
        try:
            yield
        except (BridgeError, OSError, MemoryError) as error:
            if not self._resumed:
                raise
            clients = ", ".join(self._resumed)
            why = str(error) or "no memory"
            log.error("can't start: %s; leaving to the next one: %s", why, clients)
            os._exit(1)

    def is_over(self) -> None:
        self._sweep(listeners=True)

    def _sweep(self, *, listeners: bool) -> None:
        self._inherited.close(listeners=listeners)
        if self._store:
            self._store.sweep(listeners=listeners)


class Running(_Somebody):
    """It hands over through *sock*.

    :raise BridgeError: it doesn't
    """

    runs = True

    def __init__(self, sock: socket.socket) -> None:
        self._link = ToPredecessor(sock)
        self._document: Mapping[str, Any]
        self._document, files = self._link.learn()
        super().__init__(Inherited(files, self._document["devices"], self._document["owned"]))
        self._stdio = {name: fd for name, fd in files.items() if name in STDIO}
        self.kept = tuple(self._document["stored"])

    def environment(self) -> dict[str, str]:
        return dict(self._document["environment"])

    def resume(self, offer: Callable[[str, Left], None]) -> list[str]:
        for name, left in self.left.items():
            with making_sense():
                offer(name, left)
        return list(self.left)

    @contextlib.contextmanager
    def or_it_goes_on(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            why = str(error) or type(error).__name__
            fails = isinstance(error, (OSError, MemoryError))
            if not fails and not isinstance(error, BridgeError):
                log.exception("a defect of the bridge, please report it")
            # Our starter says it, and ends us.
            self._link.refuse(f"the host fails us: {why}" if fails else why)
            os._exit(1)

    def is_over(self) -> None:
        self._link.take_over()
        for name, fd in self._stdio.items():
            os.dup2(fd, STDIO[name], inheritable=False)
        self._inherited.close()


def predecessor(kept: Mapping[str, int], undo: ExitStack) -> Nobody:
    """Who that is.

    :param kept: open files that the service manager kept
    :param undo: closes what nobody took
    :raise BridgeError: it runs, and doesn't hand over
    """
    text = os.environ.pop(LINK_VARIABLE, "")
    if not text:
        killed = Killed(kept)
        undo.callback(killed.close)
        return killed
    try:
        sock = socket.socket(fileno=int(text))
    except (OSError, ValueError):
        raise BridgeError(f"{LINK_VARIABLE}={text} is no socket: unset it") from None
    sock.set_inheritable(False)
    try:
        return Running(sock)
    except OSError as error:
        raise BridgeError(f"the host fails us: {error}; try again") from None
