# SPDX-License-Identifier: BSD-3-Clause
"""Handing everything over to a successor, which is there and waits."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import NoReturn

from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.listener import Listener
from vfio_user_bridge.notify import Manager
from vfio_user_bridge.port import Port

from .document import of_port
from .link import ToSuccessor
from .names import LISTENER, STDIO, plain
from .store import Store

log = logging.getLogger(__name__)


def hand_over(
    link: ToSuccessor,
    process: int,
    ports: Sequence[Port],
    operators: Mapping[str, Listener],
    manager: Manager,
    store: Store | None,
    check: Callable[[], None],
) -> NoReturn:
    """Hand over, and end. Call it in the thread that accepts clients.

    :param process: the successor
    :param operators: what operators come to, by what it is called
    :param check: raises BridgeError if it isn't to be done any more
    :raise BridgeError: it can't be done, and all is as before
    """
    files: dict[str, int] = {}

    def keep(name: str, fd: int) -> str:
        files[name] = fd
        return name

    with ExitStack() as frozen:
        for port in ports:
            frozen.enter_context(port.frozen())
        listeners = {plain(port.device.name): port.listener for port in ports} | dict(operators)
        for what, listener in listeners.items():
            keep(LISTENER + what, listener.socket.fileno())
        for name, fd in STDIO.items():
            if _is_open(fd):
                keep(name, fd)
        document = {
            "devices": [of_port(port, keep, whole=True) for port in ports],
            "owned": {what: each.inode for what, each in listeners.items() if each.path},
            "environment": manager.environment(),
            "stored": store.names if store else [],
        }
        try:
            link.tell(document, files)
            check()
            if not manager.succeeded_by(process):  # it would take our end for the service's
                raise BridgeError("the service manager can't be told who succeeds")
            link.leave()
        except BridgeError:
            manager.succeeded_by(os.getpid())
            for port in ports:
                port.device.reclaim()
            raise
        log.info("handed over to pid %d", process)
        # Not by any way that undoes things: all that is open here is the successor's now.
        os._exit(0)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return False
    return True
