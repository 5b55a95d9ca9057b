# SPDX-License-Identifier: BSD-3-Clause
"""Serve devices: accept, one client a device, one thread a client, until told to stop."""

from __future__ import annotations

import logging
import selectors
import signal
import socket
import struct
import threading
import time

from .device import Device
from .listener import Listener, activated, inherited, listen
from .session import MAX_MSG_FDS, Session
from .transport import Connection

__all__ = ["Server", "activated", "inherited", "listen"]

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: how long a device may take to come to rest when the server ends, in seconds
_PATIENCE = 60.0
#: pid, uid, gid: struct ucred
_UCRED = struct.Struct("=iII")


class _Port:
    """A device and the socket on which it is offered."""

    def __init__(self, device: Device, listener: Listener) -> None:
        self.device = device
        self.listener = listener
        self.client: Connection | None = None
        self.thread: threading.Thread | None = None


class Server:
    """Serves every device that was added, each on its own socket.

    :param reset_on_disconnect: whether a device is reset when its client has gone
    """

    def __init__(self, *, reset_on_disconnect: bool = True) -> None:
        self._reset = reset_on_disconnect
        self._ports: list[_Port] = []

    def add(self, device: Device, listener: Listener) -> None:
        """Offer *device* on *listener*; both are the server's to close from now on."""
        self._ports.append(_Port(device, listener))

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then give everything back. Call it in the main thread."""
        bell, ringer = socket.socketpair()
        ringer.setblocking(False)
        # The bell before the handlers: a signal between the two must not be lost.
        wakeup = signal.set_wakeup_fd(ringer.fileno())
        before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(bell, selectors.EVENT_READ)
                for port in self._ports:
                    port.listener.socket.setblocking(False)
                    selector.register(port.listener.socket, selectors.EVENT_READ, port)
                while all(self._accept(key.data) for key, _ in selector.select()):
                    pass
            log.info("stopping: %s", signal.Signals(bell.recv(1)[0]).name)
        finally:
            self.close()
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            bell.close()
            ringer.close()

    def close(self) -> None:
        """No more clients, those that are there put out, sockets removed, devices given back."""
        for port in self._ports:
            port.listener.close()
        for port in self._ports:
            if port.client:
                port.client.shut_down()
        for port in self._ports:
            if port.thread:
                port.thread.join(_PATIENCE)
                if port.thread.is_alive():
                    log.error("%s: doesn't come to rest; leaving it", port.device.name)
                    continue
            port.device.close()
        self._ports.clear()

    def _accept(self, port: _Port | None) -> bool:
        """Take whoever is at the door. False if it was the bell: time to stop."""
        if port is None:
            return False
        try:
            sock, _ = port.listener.socket.accept()
        except BlockingIOError:
            return True  # gone again
        except OSError as error:
            log.error("%s: can't accept a client: %s", port.device.name, error.strerror)
            time.sleep(0.1)  # out of descriptors, most likely; the client stays at the door
            return True
        ucred = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, _gid = _UCRED.unpack(ucred)
        peer = f"pid {pid}, uid {uid}"
        if port.client and port.thread and port.thread.is_alive() and not port.client.hung_up():
            log.warning("%s: refused %s: it has a client already", port.device.name, peer)
            sock.close()
            return True
        port.client = Connection(sock, max_fds=MAX_MSG_FDS)
        port.thread = threading.Thread(
            target=self._converse,
            args=(port.device, port.client, peer, port.thread),
            name=port.device.name,
            daemon=True,  # one that is stuck in the kernel must not keep the process
        )
        port.thread.start()
        return True

    def _converse(
        self,
        device: Device,
        connection: Connection,
        peer: str,
        predecessor: threading.Thread | None,
    ) -> None:
        if predecessor:
            predecessor.join()  # it has hung up, but the device is still being put back
        try:
            Session(connection, device, peer).run(reset=self._reset)
        except Exception:
            log.exception("%s: a defect of the bridge ended this session", device.name)
