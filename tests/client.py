# SPDX-License-Identifier: BSD-3-Clause
"""A minimal vfio-user client. It shares no code with the package, and says whatever it is told."""

from __future__ import annotations

import array
import fcntl
import json
import socket
import struct
import termios
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .wire import message, u16

VERSION = 1
DMA_MAP = 2
DMA_UNMAP = 3
GET_INFO = 4
GET_REGION_INFO = 5
GET_REGION_IO_FDS = 6
GET_IRQ_INFO = 7
SET_IRQS = 8
REGION_READ = 9
REGION_WRITE = 10
DMA_READ = 11
RESET = 13
REGION_WRITE_MULTI = 15
FEATURE = 16
MIG_DATA_READ = 17
MIG_DATA_WRITE = 18

REPLY = 0x01
NO_REPLY = 0x10
ERROR = 0x20

#: what QEMU 11 proposes
QEMU_CAPABILITIES: dict[str, Any] = {
    "max_msg_fds": 8,
    "max_data_xfer_size": 1048576,
    "pgsizes": 4096,
    "max_dma_maps": 65535,
    "write_multiple": True,
}

#: the server has hung up
GONE = (EOFError, ConnectionError)


@dataclass(frozen=True)
class Reply:
    number: int
    command: int
    flags: int
    error: int
    payload: bytes
    fds: list[int]


def version_data(capabilities: dict[str, Any]) -> bytes:
    return json.dumps({"capabilities": capabilities}).encode() + b"\0"


def connect(path: Path, patience: float = 10.0) -> Client:
    """Connect to the socket *path*, and say nothing yet."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(patience)
    sock.connect(str(path))
    return Client(sock, patience)


class Client:
    """The client's end of a connection; no call waits longer than *patience* seconds."""

    def __init__(self, sock: socket.socket, patience: float = 10.0) -> None:
        self.socket = sock
        self._number = 0
        sock.settimeout(patience)

    def send(
        self, command: int, payload: bytes = b"", fds: list[int] | None = None, *, flags: int = 0
    ) -> int:
        """Send a command, and give the ID that its reply will have."""
        self._number = (self._number + 1) & 0xFFFF
        data = message(command, payload, number=self._number, flags=flags)
        sent = socket.send_fds(self.socket, [data], fds or [])
        if sent < len(data):
            self.socket.sendall(data[sent:])
        return self._number

    def receive(self) -> Reply:
        """The next reply.

        :raise EOFError: the server has hung up
        """
        head, fds = self._read(16)
        number, command, size, flags, error = struct.unpack("=HHIII", head)
        payload, more = self._read(size - 16)
        return Reply(number, command, flags, error, payload, fds + more)

    def call(self, command: int, payload: bytes = b"", fds: list[int] | None = None) -> Reply:
        """Send a command and receive its reply, which must be one, and its."""
        number = self.send(command, payload, fds)
        reply = self.receive()
        assert (reply.number, reply.command) == (number, command)
        assert reply.flags in (REPLY, REPLY | ERROR)
        return reply

    def ask(self, command: int, payload: bytes = b"", fds: list[int] | None = None) -> bytes:
        """The payload of the reply to a command that must succeed, without descriptors."""
        reply = self.call(command, payload, fds)
        assert (reply.flags, reply.error, reply.fds) == (REPLY, 0, [])
        return reply.payload

    def refused(self, command: int, payload: bytes = b"", fds: list[int] | None = None) -> int:
        """The errno of the reply to a command that must fail; it has a header and no more."""
        reply = self.call(command, payload, fds)
        assert (reply.flags, reply.payload, reply.fds) == (REPLY | ERROR, b"", [])
        return reply.error

    def negotiate(self, capabilities: dict[str, Any] | None = None, minor: int = 0) -> Any:
        """Agree on version 0.*minor*; gives the capabilities that the server named."""
        named = QEMU_CAPABILITIES if capabilities is None else capabilities
        payload = self.ask(VERSION, u16(0, minor) + version_data(named))
        assert payload[:4] == u16(0, minor)
        assert payload.endswith(b"\0")
        return json.loads(payload[4:-1])["capabilities"]

    def wait_until_taken(self) -> None:
        """Wait until the server has taken out of the socket all that was sent."""
        deadline = time.monotonic() + (self.socket.gettimeout() or 0)
        while any(fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4))):
            assert time.monotonic() < deadline, "the server leaves it there"
            time.sleep(0.001)

    def wait_until_hung_up(self) -> None:
        """Wait until the server hangs up; replies that still come are passed over."""
        try:
            while self.socket.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass

    def close(self) -> None:
        self.socket.close()

    def _read(self, count: int) -> tuple[bytes, list[int]]:
        data, fds = b"", array.array("i")
        room = socket.CMSG_SPACE(16 * fds.itemsize)
        while len(data) < count:
            piece, control, _flags, _address = self.socket.recvmsg(count - len(data), room)
            for _level, _kind, content in control:
                fds.frombytes(content)
            if not piece:
                raise EOFError("the server has hung up")
            data += piece
        return data, fds.tolist()
