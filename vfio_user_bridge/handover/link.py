# SPDX-License-Identifier: BSD-3-Clause
"""How one bridge takes over from another that runs: what they say to each other.

They have a stream socket between them, on which each message is a length and MessagePack::

    successor    hello: who it is, which documents it knows
    predecessor  all: the document, then the open files that it names
    successor    ready, or refused and why
    predecessor  gone

Before `all`, the predecessor stops between two messages of each client. After `ready` it tells the
service manager who succeeds it, says so, and ends. The successor waits for that, which the end of
the stream tells, and serves: two that read from one socket would each miss what the other has read.
One that ends without `gone` was killed, and its manager starts another in its place. If it is
refused, or told nothing for too long, the predecessor goes on, and says so in place of `gone`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
from collections.abc import Mapping
from struct import Struct
from typing import Any

from vfio_user_bridge import __version__
from vfio_user_bridge.ancillary import receive_waiting, send_all
from vfio_user_bridge.errors import BridgeError

from .document import VERSION, msgpack

log = logging.getLogger(__name__)

_LENGTH = Struct("=Q")
_LARGEST = 1 << 30
#: descriptors that go at once; the kernel takes 253
_AT_ONCE = 200
#: seconds that a successor may take to start
PATIENCE = 30.0
#: and then to be ready, while guests wait
FROZEN = 10.0


class _Link:
    """One end."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._msgpack = msgpack()
        sock.settimeout(PATIENCE)

    def close(self) -> None:
        self._socket.close()

    def _say(self, message: Mapping[str, Any]) -> None:
        data = self._msgpack.packb(message)
        try:
            self._socket.sendall(_LENGTH.pack(len(data)) + data)
        except OSError as error:
            raise BridgeError(f"the other bridge doesn't listen: {error}") from None

    def _hear(self) -> dict[str, Any]:
        """:raise BridgeError: it is gone, silent, or makes no sense"""
        (size,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if size > _LARGEST:
            raise BridgeError("the other bridge makes no sense")
        try:
            message = self._msgpack.unpackb(self._exactly(size), strict_map_key=False)
            return dict(message)
        except (ValueError, TypeError, self._msgpack.exceptions.UnpackException):
            raise BridgeError("the other bridge makes no sense") from None

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                piece = self._socket.recv(size - len(data))
            except TimeoutError:
                raise BridgeError(
                    f"the other bridge has said nothing for {self._socket.gettimeout():.0f} s"
                ) from None
            except OSError as error:
                raise BridgeError(f"the other bridge is gone: {error.strerror}") from None
            if not piece:
                raise BridgeError("the other bridge is gone")
            data += piece
        return bytes(data)


class ToSuccessor(_Link):
    """This process's end, while it serves."""

    def greeted(self) -> int:
        """The successor has started; gives its process.

        :raise BridgeError: it hasn't, or doesn't know our documents
        """
        hello = self._hear()
        if hello.get("document") != VERSION:
            raise BridgeError(
                f"version {hello.get('bridge')} knows documents of version {hello.get('document')},"
                f" and this bridge writes {VERSION}: stop this one and start that"
            )
        if not isinstance(pid := hello.get("pid"), int):
            raise BridgeError("the other bridge makes no sense")
        return pid

    def tell(self, document: Mapping[str, Any], files: Mapping[str, int]) -> None:
        """All of it.

        :raise BridgeError: the successor can't use it
        """
        self._socket.settimeout(FROZEN)
        names = list(files)
        self._say({"version": VERSION, **document, "files": names})
        for first in range(0, len(names), _AT_ONCE):
            send_all(self._socket, b"\0", [files[name] for name in names[first:][:_AT_ONCE]])
        answer = self._hear()
        if "refused" in answer:
            raise BridgeError(str(answer["refused"]))

    def leave(self) -> None:
        """The successor's turn is now: this process ends.

        :raise BridgeError: it can't be told
        """
        self._say({"gone": True})

    def go_on(self) -> None:
        """The successor is to go."""
        with contextlib.suppress(BridgeError):  # it has gone
            self._say({"refused": "its predecessor goes on"})
        self.close()


class ToPredecessor(_Link):
    """This process's end, before it serves."""

    def learn(self) -> tuple[dict[str, Any], dict[str, int]]:
        """The document, and the open files in it by name, which are the caller's to close.

        :raise BridgeError: there is none to be had
        :raise SystemExit: the predecessor goes on, and has told why
        """
        self._say({"document": VERSION, "bridge": __version__, "pid": os.getpid()})
        document = self._hear()
        if "refused" in document:
            raise SystemExit(1)
        names: list[str] = document["files"]
        files: dict[str, int] = {}
        while missing := names[len(files) :][:_AT_ONCE]:
            try:
                files.update(zip(missing, self._files(len(missing)), strict=True))
            except BridgeError as error:
                self.refuse(str(error))
                raise
        return document, files

    def _files(self, count: int) -> list[int]:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.poll(PATIENCE * 1000)
        try:
            _, files = receive_waiting(self._socket, 1)
        except OSError:
            files = []
        if len(files) != count:  # the kernel leaves out what can't be had
            raise BridgeError("open files of the predecessor haven't come: is ulimit -n too low?")
        return files

    def refuse(self, why: str) -> None:
        """It can't be done: the predecessor goes on."""
        with contextlib.suppress(BridgeError):  # it does already
            self._say({"refused": why})
        self.close()

    def take_over(self) -> None:
        """All is ready: the predecessor is gone when this returns.

        :raise BridgeError: it goes on
        """
        self._say({"ready": True})
        if "gone" not in self._hear():
            raise BridgeError("the predecessor goes on: this one came too late")
        while not self._has_ended():  # there is nobody else who would serve
            log.warning("the predecessor has handed over, and doesn't end: waiting for that")
        self.close()

    def _has_ended(self) -> bool:
        try:
            return not self._socket.recv(1)
        except TimeoutError:
            return False
        except ConnectionError:
            return True
