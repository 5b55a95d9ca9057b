# SPDX-License-Identifier: BSD-3-Clause
"""Serve devices: accept, one client a device, one thread a device, until told to stop.

The threads are there before the first client is: to start one takes memory, and may fail or worse.
What fails in the main thread, for want of memory or descriptors, it tries again: what it has not
done is still waiting at the next poll().
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from .device import Device
from .errors import BridgeError
from .handover.handing import hand_over  # not when it is called: it may be another version's then
from .handover.succession import Successions
from .limits import DEFAULTS, Limits
from .listener import Listener
from .notify import Manager
from .peers import Allowed, Peer, peer
from .port import Port
from .session import Session
from .status import DeviceStatus
from .transport import Connection

if TYPE_CHECKING:
    from .handover.inherited import Left
    from .handover.link import ToSuccessor
    from .handover.store import Store
    from .recording import RecordedDevice
    from .state import State

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: how long a device may take to come to rest when the server ends, in seconds
_PATIENCE = 60.0
#: how long the server waits after the host has failed it, in seconds
_PAUSE = 0.1
#: how soon it looks whether a device is at rest, should no bell tell, or tries once more to write
#: something down; in seconds
_GLANCE = 1.0


class Server:
    """Serves every device that was added, each on its own socket.

    :param reset_on_disconnect: whether a device is reset when its client has gone
    :param allowed: who may be a client
    :param limits: what each client may have
    :param patience: how long to look for a client's next message before sleeping, in seconds
    :param session: who converses with clients: our own engine, or another
    :param manager: who is told how the server does
    :param store: where it keeps what is open, should this process be killed
    """

    def __init__(
        self,
        *,
        reset_on_disconnect: bool = True,
        allowed: Allowed = Allowed(),  # noqa: B008 - it can't be changed
        limits: Limits = DEFAULTS,
        patience: float = 0.0,
        session: type[Session] = Session,
        manager: Manager | None = None,
        store: Store | None = None,
    ) -> None:
        self._reset = reset_on_disconnect
        self._allowed = allowed
        self._limits = limits
        self._looks = patience
        self._session = session
        self._manager = manager or Manager({})
        self._store = store
        #: what operators come to, by what it is called
        self.operators: dict[str, Listener] = {}
        #: who is to serve in our place
        self.successions = Successions(self._ring)
        self._ports: list[Port] = []
        self._selector = selectors.PollSelector()  # to register with epoll takes memory
        self._bell, self._ringer = socket.socketpair()
        self._ringer.setblocking(False)
        self._stopped_by = 0

    def add(
        self,
        device: Device,
        listener: Listener,
        recorded: RecordedDevice | None = None,
        left: Left | None = None,
    ) -> None:
        """Offer *device* on *listener*; both are the server's to close from now on.

        :param recorded: the device, if it can be recorded
        :param left: what a predecessor left of it
        :raise BridgeError: that makes no sense
        """
        port = Port(device, listener, recorded)
        self._ports.append(port)
        try:
            if self._store:
                from .handover.ledger import new_ledger

                journal = left.journal if left else None
                port.ledger = new_ledger(port, self._store, journal, self._ring)
            if left:
                self._resume(port, left)
        except BaseException:
            if left and left.runs:
                raise  # the two have journal, store and recording in common: this process ends
            self._ports.remove(port)
            if left:
                listener.socket.close()  # it is open elsewhere, too: its file stays
            else:
                listener.close()
            port.close()
            raise

    def _resume(self, port: Port, left: Left) -> None:
        from .handover.resume import resume

        with contextlib.ExitStack() as undo:
            if found := resume(port, left, self._session.engine):
                sock, state = found
                undo.callback(sock.close)
                if state:
                    undo.callback(state.close)
                port.go_on(*self._meet(port, sock, peer(sock), state))
            if not left.runs:
                port.succeed()
            undo.pop_all()

    def succeed(self) -> None:
        """The predecessor ran, and is gone: nobody else would go on."""
        for port in self._ports:
            try:
                port.succeed()
            except (OSError, MemoryError) as error:
                log.error(
                    "%s: the host fails us: %s; a crash would lose its client",
                    port.device.name,
                    str(error) or "no memory",
                )

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until SIGTERM or SIGINT, or until the host has taken the last device back.

        Then give everything back. Call it in the main thread.

        :param ready: called once all that serves is there
        """
        # The bell before the handlers: a signal between the two must not be lost.
        wakeup = signal.set_wakeup_fd(self._ringer.fileno())
        before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        try:
            self._register(self._bell, self._hear)
            for port in self._ports:
                port.listener.socket.setblocking(False)
                self._start(port)
                self._open_door(port)
                if port.device.host_request is not None:
                    self._register(port.device.host_request, partial(self._give_notice, port))
            ready()
            self._manager.ready()
            while self._ports and not self._stopped_by:
                self._manager.report(self._summary())
                try:
                    for key, _ in self._selector.select(self._patience()):
                        key.data()
                except (OSError, MemoryError) as error:
                    log.error("the host fails us: %s; trying again", str(error) or "no memory")
                    time.sleep(_PAUSE)
                for port in self._ports:
                    if port.door_shut and not port.busy:
                        self._open_door(port)
                    port.catch_up()
                self._let_go()
                self.successions.grant(self._hand_over)
            if self._stopped_by:
                log.info("stopping: %s", signal.Signals(self._stopped_by).name)
        finally:
            self._manager.stopping()
            self.close()
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)

    def status(self) -> list[DeviceStatus]:
        """Of each device; any thread may ask."""
        return [port.status() for port in list(self._ports)]

    def ports(self, name: str = "") -> list[Port]:
        """That of the device *name*; without one, all. Any thread may ask.

        :raise BridgeError: there is no such device
        """
        ports = list(self._ports)
        chosen = [port for port in ports if name in (port.device.name, "")]
        if not chosen:
            known = ", ".join(port.device.name for port in ports) or "none, they were given back"
            raise BridgeError(f"no device {name!r} is served here; there are: {known}")
        return chosen

    def _hand_over(self, link: ToSuccessor, process: int) -> NoReturn:
        operators, manager, store = self.operators, self._manager, self._store
        hand_over(link, process, self._ports, operators, manager, store, self._check_not_stopped)

    def _check_not_stopped(self) -> None:
        """:raise BridgeError: a signal has come, be it unheard yet"""
        rung = b""
        with contextlib.suppress(OSError):
            rung = self._bell.recv(4096, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        if self._stopped_by or any(rung):
            raise BridgeError("this bridge was told to end")

    def _summary(self) -> str:
        """Which devices have a client, for `systemctl status`."""
        return "; ".join(
            f"{port.device.name}: {port.peer if port.busy else 'no client'}" for port in self._ports
        )

    def close(self) -> None:
        """No more clients, those that are there put out, sockets removed, devices given back."""
        for port in self._ports:
            port.listener.close()
        for port in self._ports:
            if port.client:
                port.client.shut_down()
        for port in self._ports:
            self._close_device(port)
        self._ports.clear()
        self._selector.close()
        self._bell.close()
        self._ringer.close()

    @staticmethod
    def _close_device(port: Port) -> None:
        if port.thread:
            port.sessions.put(None)
            port.thread.join(_PATIENCE)
            if port.thread.is_alive():
                log.error(
                    "%s: doesn't come to rest; leaving it, dmesg may have the reason",
                    port.device.name,
                )
                return
        port.close()

    def _start(self, port: Port) -> None:
        port.thread = threading.Thread(
            target=self._converse,
            args=(port,),
            name=port.device.name,
            daemon=True,  # one that is stuck in the kernel must not keep the process
        )
        port.thread.start()

    def _register(self, file: socket.socket | int, react: Callable[[], None]) -> None:
        self._selector.register(file, selectors.EVENT_READ, react)

    def _hear(self) -> None:
        """The bell rang: a signal says its number, a client's thread that ended 0."""
        for number in self._bell.recv(64):
            self._stopped_by = self._stopped_by or number

    def _open_door(self, port: Port) -> None:
        port.door_shut = False
        self._register(port.listener.socket, partial(self._accept, port))

    def _shut_door(self, port: Port) -> None:
        if not port.door_shut:
            port.door_shut = True
            self._selector.unregister(port.listener.socket)

    def _accept(self, port: Port) -> None:
        if port.busy and port.deadline is None and port.client and port.client.hung_up():
            # The device is still being put back. Who comes meanwhile waits outside: the socket's
            # backlog is bounded, and costs us neither thread nor descriptor.
            self._shut_door(port)
            return
        try:
            sock, _ = port.listener.socket.accept()
        except BlockingIOError:
            return  # gone again
        except OSError as error:
            log.error(
                "%s: can't accept a client: %s; trying again", port.device.name, error.strerror
            )
            time.sleep(_PAUSE)  # out of descriptors, most likely; the client stays at the door
            return
        try:
            self._admit(port, sock)
        except BaseException:
            sock.close()
            raise

    def _admit(self, port: Port, sock: socket.socket) -> None:
        who = peer(sock)
        refusal = None
        if not self._allowed.admits(who):
            refusal = "neither its user nor a group of it is allowed"
        elif port.deadline is not None:
            refusal = "the host wants the device back"
        elif port.draining:
            refusal = "the operator lets no client in"
        elif port.busy:
            refusal = "it has a client already"
        if refusal:
            log.warning("%s: refused %s: %s", port.device.name, who, refusal)
            sock.close()
            return
        port.admit(*self._meet(port, sock, who))

    def _meet(
        self, port: Port, sock: socket.socket, who: Peer, state: State | None = None
    ) -> tuple[Connection, Peer, Session]:
        """What it takes to converse with a client; *state* is what it and a predecessor were at."""
        looks = 0.0 if who.shares_one_cpu() else self._looks
        journal = port.ledger.journal if port.ledger else None
        client = Connection(sock, self._limits, looks, journal)
        session = self._session(
            client,
            port.device,
            str(who),
            self._limits,
            port.turn,
            state=state,
            ledger=port.ledger,
            gone=port.client_gone,
        )
        return client, who, session

    def _converse(self, port: Port) -> None:
        """Hold one conversation after another: the device's thread."""
        for session in iter(port.sessions.get, None):
            try:
                session.run(reset=self._reset)
            except Exception:
                log.exception(
                    "%s: a defect of the bridge ended this session, please report it",
                    port.device.name,
                )
            finally:
                port.over.set()
                self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # the server is closing, or will glance
            self._ringer.send(b"\0")

    # ---- When the host wants a device back --------------------------------------------------

    def _give_notice(self, port: Port) -> None:
        """Tell the client, as often as the kernel tells us; it has the grace period to go."""
        if port.deadline is None:
            port.deadline = time.monotonic() + self._limits.grace
            left = f"its client has {self._limits.grace:.0f} s to let go"
            log.warning(
                "%s: the host wants it back; %s",
                port.device.name,
                left if port.busy else "letting go",
            )
        port.device.heed_host_request()
        port.note()

    def _patience(self) -> float | None:
        """How long to wait for an event, in seconds.

        Until the next grace period ends, the manager must have a sign of life, a client waits
        outside and whoever was to ring for it may have failed, or something isn't written down.
        """
        now = time.monotonic()
        waits = [max(0.0, port.deadline - now) for port in self._ports if port.deadline is not None]
        if (patience := self._manager.patience) is not None:
            waits.append(patience)
        waits += [_GLANCE for port in self._ports if port.door_shut or port.behind]
        return min(waits, default=None)

    def _let_go(self) -> None:
        """Close the devices that the host wants back and no client has, or has for too long."""
        for port in [port for port in self._ports if port.deadline is not None]:
            assert port.deadline is not None
            if port.busy and time.monotonic() < port.deadline:
                continue
            if port.client:
                port.client.shut_down()
            request = port.device.host_request
            if request is not None:
                self._selector.unregister(request)
            self._shut_door(port)
            port.listener.close()
            self._close_device(port)
            self._ports.remove(port)
            log.info("%s: given back to the host", port.device.name)
