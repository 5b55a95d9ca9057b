# SPDX-License-Identifier: BSD-3-Clause
"""The engines that answer clients, for tests that hold for each of them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest

from vfio_user_bridge.device import Device
from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.libvfio_user import library
from vfio_user_bridge.limits import Limits
from vfio_user_bridge.session import Session
from vfio_user_bridge.transport import Connection

from .client import Client

NATIVE = "native"
LIBRARY = "libvfio-user"
ENGINES = (NATIVE, LIBRARY)

PATIENCE = 10.0


def need(engine: str) -> None:
    """Skip the test, or the module, and say why, if this machine doesn't have *engine*."""
    if engine == LIBRARY and (obstacle := _obstacle()):
        pytest.skip(obstacle, allow_module_level=True)


@cache
def _obstacle() -> str:
    """Why libvfio-user can't be used; finding that out takes a while."""
    try:
        library.load()
    except BridgeError as error:
        return str(error)
    return ""


def session_of(engine: str) -> type[Session]:
    if engine == NATIVE:
        return Session
    from vfio_user_bridge.libvfio_user.session import LibrarySession

    return LibrarySession


class Talk:
    """A client's end of a session in which *engine* serves *device*."""

    def __init__(self, engine: str, device: Device, *, stall: float = 10.0) -> None:
        ours, theirs = socket.socketpair()
        self.client = Client(theirs, PATIENCE)
        self.error: BaseException | None = None
        connection = Connection(ours, Limits(stall=stall))
        self._session = session_of(engine)(connection, device, "a test")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._session.run()
        except BaseException as error:
            self.error = error

    def wait(self) -> None:
        """Wait until the session has ended by itself."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the session goes on"

    def end(self) -> None:
        """Hang up, and wait until the session has cleaned up, without a defect."""
        self.client.close()
        self.wait()
        assert self.error is None, self.error


@contextmanager
def talk(
    engine: str, device: Device, *, negotiated: bool = True, stall: float = 10.0
) -> Iterator[Talk]:
    """A session that is over when the block ends; *device* stays open."""
    talk = Talk(engine, device, stall=stall)
    try:
        if negotiated:
            talk.client.negotiate()
        yield talk
    finally:
        talk.end()
