# SPDX-License-Identifier: BSD-3-Clause
"""One client's session in a thread, with the client's end of the socket in the test's hand."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from vfio_user_bridge.limits import DEFAULTS, Limits
from vfio_user_bridge.session import Session
from vfio_user_bridge.transport import Connection

from .client import Client
from .fake_device import FakeDevice

PATIENCE = 10.0


class Conversation:
    """A session that serves *device*; *error* is what it raised, once it has ended."""

    def __init__(
        self, device: FakeDevice, *, reset: bool = True, limits: Limits = DEFAULTS
    ) -> None:
        ours, theirs = socket.socketpair()
        self.device = device
        self.client = Client(theirs, PATIENCE)
        self.error: BaseException | None = None
        self.session = Session(Connection(ours, limits), device, "a test", limits)
        self._reset = reset
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.session.run(reset=self._reset)
        except BaseException as error:  # whatever it is, the test wants to see it
            self.error = error

    def wait(self) -> None:
        """Wait until the session has ended by itself."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the session goes on"

    def end(self) -> None:
        """Hang up, and wait until the session has cleaned up."""
        self.client.close()
        self.wait()


@contextmanager
def conversation(
    device: FakeDevice | None = None,
    *,
    negotiated: bool = True,
    reset: bool = True,
    limits: Limits = DEFAULTS,
) -> Iterator[Conversation]:
    """A conversation that is over, and its device closed, when the block ends."""
    talk = Conversation(device or FakeDevice(), reset=reset, limits=limits)
    try:
        if negotiated:
            talk.client.negotiate()
        yield talk
    finally:
        talk.end()
        talk.device.close()
