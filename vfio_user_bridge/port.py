# SPDX-License-Identifier: BSD-3-Clause
"""A device, the socket on which it is offered, and its client."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING

from .counters import Counters
from .device import Device, DeviceFlags
from .errors import BridgeError
from .listener import Listener
from .peers import Peer
from .session import Session
from .state import Ledger
from .status import DeviceStatus, RuleStatus, client_status, known
from .transport import Connection

if TYPE_CHECKING:
    from .recording import RecordedDevice

log = logging.getLogger(__name__)

#: how long the operator waits for a device that is at work, in seconds
_PATIENCE = 3.0
#: how long a look at it waits for the same, in seconds
_GLANCE = 0.1
_MOMENT = 0.001  # seconds, between two tries


class Port:
    """What the server's thread, the device's and the operator's have in common.

    :param recorded: the device, if it can be recorded
    """

    def __init__(
        self, device: Device, listener: Listener, recorded: RecordedDevice | None = None
    ) -> None:
        self.device = device
        #: where a successor finds all this, should we be killed
        self.ledger: Ledger | None = None
        self._recorded = recorded
        self.listener = listener
        self._address = listener.address
        self.client: Connection | None = None
        self.peer: Peer | None = None  # who that is
        self.session: Session | None = None  # and what is said
        #: held by whoever has the device at work
        self.turn = threading.Lock()
        #: conversations to be held; None ends the thread
        self.sessions: SimpleQueue[Session | None] = SimpleQueue()
        self.thread: threading.Thread | None = None
        self.over = threading.Event()  # the latest conversation is
        self.over.set()
        self.door_shut = False
        self.has_client = False  # and the device isn't being put back
        self.draining = False  # no client is let in
        self._closed = False  # the device is
        #: when the client must let go, since the host wants the device back (time.monotonic)
        self.deadline: float | None = None
        self.since = 0.0  # the client came (time.time)
        self.clients = 0  # so far
        self.past = Counters()  # of clients before the latest
        self._counting = threading.Lock()

    @property
    def busy(self) -> bool:
        return not self.over.is_set()

    @property
    def totals(self) -> Counters:
        """Of all clients so far."""
        return self.past + self.session.counters if self.session else self.past

    def admit(self, client: Connection, who: Peer, session: Session) -> None:
        """This is the client from now on; the device's thread holds the conversation.

        :raise OSError: it can't be written down, and isn't
        """
        with self._counting:
            if self.session:
                self.past += self.session.counters
            self.clients += 1
            self.since = time.time()
        self.go_on(client, who, session, new=True)

    def go_on(self, client: Connection, who: Peer, session: Session, *, new: bool = False) -> None:
        """With a client that a predecessor admitted, unless it is *new*."""
        with self._counting:
            self.client, self.peer, self.session = client, who, session
        self.has_client = True
        try:
            if new and self.ledger:
                self.ledger.write()
        except BaseException:
            self.has_client = False
            raise
        self.over.clear()
        self.sessions.put(session)

    def succeed(self) -> None:
        """The predecessor is gone: what it had is this process's alone, and written down as such.

        :raise OSError: as `Device.succeed`
        """
        self.device.succeed()
        if self.ledger:
            self.ledger.write_or_later()

    def client_gone(self) -> None:
        """All that is left to do is to put the device back: its thread says so."""
        self.has_client = False
        with self._counting:
            if self.session:  # what it counted in will be another's
                self.session.counters += Counters()
        if self.ledger:
            self.ledger.client_gone()

    @property
    def behind(self) -> bool:
        """Whether there is something to `catch_up` with."""
        return self.ledger is not None and self.ledger.behind

    def note(self) -> None:
        """What no message changes has changed: `catch_up` writes it down."""
        if self.ledger:
            self.ledger.note()

    def catch_up(self) -> None:
        """Write down what isn't yet, unless the device is at work: then another time."""
        if self.ledger and self.ledger.behind and self.turn.acquire(blocking=False):
            try:
                self.ledger.write_or_later()
            finally:
                self.turn.release()

    def status(self) -> DeviceStatus:
        """As it is between two messages, unless the device is at work for long.

        Any thread may ask.
        """
        between = self.turn.acquire(timeout=_GLANCE)
        try:
            return self._status()
        finally:
            if between:
                self.turn.release()

    def _status(self) -> DeviceStatus:
        with self._counting:
            client, who, session, since = self.client, self.peer, self.session, self.since
            counters = session.counters if session else Counters()
            totals, clients = self.past + counters, self.clients
        state = "no client"
        there = None
        if self.busy and client and who and session:
            state = "serving" if self.deadline is None else "wanted by the host"
            if client.hung_up():
                state = "coming to rest"
            there = client_status(who, since)
        else:
            session, counters = None, Counters()
        of_client = known(session.state if session else None)
        return DeviceStatus(
            name=self.device.name,
            socket=self._address,
            state=state,
            draining=self.draining,
            client=there,
            maps=of_client.maps,
            mapped=of_client.mapped,
            irqs=of_client.irqs,
            counters=counters,
            totals=totals,
            clients=clients,
            rules=[RuleStatus(*hits) for hits in self.device.hits],
            recording=self._recorded.progress if self._recorded else None,
        )

    def close(self) -> None:
        """Close the device, once nobody has it at work; its thread has ended."""
        with self.turn:
            self._closed = True
            if self.ledger:
                self.ledger.close()
            self.device.close()

    # ---- What the operator asks for -----------------------------------------------------------

    def reset(self) -> None:
        """``VFIO_DEVICE_RESET``, between two messages of a client.

        :raise BridgeError: the device can't, or is at work for longer than the operator waits
        """
        with self.stopped():
            if not self.device.info.flags & DeviceFlags.RESET:
                raise BridgeError(f"{self.device.name} can't be reset: no way of it works here")
            try:
                self.device.reset()
            except OSError as error:
                reason = error.strerror or error
                raise BridgeError(f"{self.device.name} can't be reset: {reason}") from None
        log.warning("%s: reset by the operator", self.device.name)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Meanwhile no message of a client is answered.

        :raise BridgeError: the device is at work for longer than the operator waits
        """
        if not self.turn.acquire(timeout=_PATIENCE):
            raise BridgeError(f"{self.device.name} is at work: try again")
        try:
            if self._closed:
                raise BridgeError(f"{self.device.name} is given back: it isn't served any more")
            yield
        finally:
            self.turn.release()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Meanwhile nothing that a client sent or is to get is in this process alone.

        :raise BridgeError: that isn't so within the operator's patience
        """
        deadline = time.monotonic() + _PATIENCE
        while True:
            with self.stopped(), self._settled() as settled:
                if settled:
                    yield
                    return
            if time.monotonic() > deadline:
                raise BridgeError(
                    f"the client of {self.device.name} is in the midst of a message, or doesn't"
                    " take its replies: try again"
                )
            time.sleep(_MOMENT)

    def _settled(self) -> contextlib.AbstractContextManager[bool]:
        return self.client.settled() if self.busy and self.client else contextlib.nullcontext(True)

    def disconnect(self) -> None:
        """Put the client out.

        :raise BridgeError: there is none
        """
        if not self.busy or self.client is None:
            raise BridgeError(f"{self.device.name} has no client")
        log.warning("%s: the operator puts %s out", self.device.name, self.peer)
        self.client.shut_down()

    def record(self, file: int, limit: int) -> None:
        """Record into the empty *file*, which is the caller's to close, *limit* bytes at most.

        :raise BridgeError: it can't be done
        """
        recorded = self._recordable()
        with self.stopped():
            recorded.start(os.dup(file), limit)

    def stop_recording(self) -> None:
        """:raise BridgeError: it isn't being recorded"""
        with self.stopped():
            recorded = self._recordable()
            if not recorded.progress:
                raise BridgeError(f"{self.device.name} isn't being recorded")
            recorded.stop()

    def _recordable(self) -> RecordedDevice:
        if self._recorded is None:
            raise BridgeError(f"{self.device.name} can't be recorded: serve it with --control")
        return self._recorded

    def drain(self, on: bool) -> None:
        """Let no client in; or let them in again."""
        if on != self.draining:
            self.draining = on
            log.warning("%s: clients are %s", self.device.name, "refused" if on else "let in again")
            self.note()
            with contextlib.suppress(BridgeError), self.stopped():  # before we say that it is done
                if self.ledger:
                    self.ledger.write_or_later()
