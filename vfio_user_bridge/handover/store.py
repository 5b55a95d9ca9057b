# SPDX-License-Identifier: BSD-3-Clause
"""Descriptors that outlive this process: the service manager's store (sd_pid_notify_with_fds(3)).

Each has a name, which says what is open there, not whose it is: systemd keeps one descriptor of an
open file, however often it is given.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from vfio_user_bridge.notify import Manager

from .names import FOREIGN, LISTENER, PREFIX


class NotKeptError(OSError):
    """The manager can't be told, as it has no room in its socket or is gone."""

    def __init__(self) -> None:
        super().__init__("the service manager can't be told")


class Store:
    """What *manager* keeps for us.

    :param there: names of what it has kept since a predecessor's time
    """

    def __init__(self, manager: Manager, there: Iterable[str] = ()) -> None:
        self._manager = manager
        self._holders: dict[str, int] = dict.fromkeys(there, 0)
        #: what it couldn't be told to close, and may not be what is called so next
        self._stale: set[str] = set()
        self._lock = threading.Lock()  # devices have a thread each

    def keep(self, name: str, fd: int) -> None:
        """Have it kept, as often as `release` will be called.

        :raise NotKeptError: it isn't
        """
        with self._lock:
            if name in self._stale:
                self._drop(name)
            there = name in self._holders or self._manager.keep(PREFIX + name, fd)
            if name in self._stale or not there:
                raise NotKeptError
            self._holders[name] = self._holders.get(name, 0) + 1

    def release(self, name: str) -> None:
        with self._lock:
            self._holders[name] -= 1
            if not self._holders[name]:
                self._drop(name)

    @property
    def names(self) -> list[str]:
        """Of all that is kept."""
        with self._lock:
            return list(self._holders)

    @property
    def owes(self) -> bool:
        """Whether something was released that is still kept: `settle` tries again."""
        return bool(self._stale)

    def settle(self) -> None:
        """Wait until what was released is closed there."""
        with self._lock:
            for name in list(self._stale):
                self._drop(name)
        self._manager.settle()

    def sweep(self, *, listeners: bool = True) -> None:
        """What a predecessor had kept, and nobody has asked for, goes; *listeners*, too, or not."""
        with self._lock:
            for name in [name for name, holders in self._holders.items() if not holders]:
                if listeners or not name.startswith(LISTENER):
                    self._drop(name)
        self.settle()

    def _drop(self, name: str) -> None:
        if self._manager.release(PREFIX + name):
            del self._holders[name]
            self._stale.discard(name)
        else:
            self._stale.add(name)


class Held:
    """What one device needs of a `Store`; each round names all of it anew."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: set[str] = set()
        self._named: set[str] = set()

    def keep(self, name: str, fd: int) -> str:
        """This round needs it: see `device.Keep`. What is foreign is lost with this process."""
        if name.startswith(FOREIGN):
            return name
        if name not in self._held and name not in self._named:
            self._store.keep(name, fd)
        self._named.add(name)
        return name

    def cancel_round(self) -> None:
        """What was needed before is needed still, and nothing else."""
        for name in self._named - self._held:
            self._store.release(name)
        self._named = set()

    def end_round(self) -> bool:
        """What was needed before, and isn't any more, goes. Whether there was any."""
        gone = self._held - self._named
        for name in gone:
            self._store.release(name)
        self._held, self._named = self._named, set()
        return bool(gone)
