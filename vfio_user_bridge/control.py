# SPDX-License-Identifier: BSD-3-Clause
"""The operator's socket: MessagePack-RPC (its specification is in msgpack-rpc/spec.md), both ends.

A request is ``[0, msgid, method, params]``, its response ``[1, msgid, error, result]``. Whoever may
open the socket is trusted with what the methods do, but not to be quick, or to make sense.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import BridgeError
from .listener import Listener

log = logging.getLogger(__name__)

_REQUEST, _RESPONSE = 0, 1
_PATIENCE = 5.0  # seconds, for the other end
_MAX_REQUEST = 1 << 16  # bytes
_MAX_RESPONSE = 1 << 24

Methods = Mapping[str, Callable[..., object]]


def msgpack() -> ModuleType:
    """:raise BridgeError: it isn't installed"""
    try:
        return importlib.import_module("msgpack")
    except ImportError:
        raise BridgeError(
            "the control socket takes msgpack: install python3-msgpack, or by pip msgpack"
        ) from None


class Control:
    """Answers requests on *listener*, one client after the other, in a thread of its own."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._methods: Methods = {}
        self._thread: threading.Thread | None = None
        try:
            self._msgpack = msgpack()  # now: confined, it might not be found
        except BridgeError:
            listener.close()
            raise

    def start(self, methods: Methods) -> None:
        """Answer from now on."""
        self._methods = methods
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.socket.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._listener.close()
        if self._thread:
            self._thread.join(_PATIENCE)

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.socket.accept()
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.EBADF):
                    return  # closed
                time.sleep(0.1)  # out of descriptors, most likely
                continue
            with sock:
                sock.settimeout(_PATIENCE)
                try:
                    self._converse(sock)
                except (OSError, ValueError, self._msgpack.exceptions.UnpackException) as error:
                    log.info("control: put out: %s", error)

    def _converse(self, sock: socket.socket) -> None:
        unpacker = self._msgpack.Unpacker(max_buffer_size=_MAX_REQUEST)
        while data := sock.recv(4096):
            unpacker.feed(data)
            for request in unpacker:
                match request:
                    case [int(kind), int(number), str(name), list(params)] if kind == _REQUEST:
                        answer = [_RESPONSE, number, *self._call(name, params)]
                        sock.sendall(self._msgpack.packb(answer))
                    case _:
                        raise ValueError("it sent no request")

    def _call(self, name: str, params: list[Any]) -> tuple[str | None, object]:
        """Error and result."""
        method = self._methods.get(name)
        if method is None:
            return f"there is no method {name!r}; there are: {', '.join(self._methods)}", None
        try:
            return None, method(*params)
        except (BridgeError, TypeError) as error:
            return str(error), None


def ask(path: Path, method: str, *params: object) -> Any:
    """Call a method of the bridge whose control socket is at *path*; gives its result.

    :raise BridgeError: nobody is there, or it refuses
    """
    pack = msgpack()
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_PATIENCE)
            sock.connect(str(path))
            sock.sendall(pack.packb([_REQUEST, 0, method, params]))
            sock.shutdown(socket.SHUT_WR)
            unpacker = pack.Unpacker(sock.makefile("rb"), max_buffer_size=_MAX_RESPONSE)
            _, _, error, result = unpacker.unpack()
    except OSError as failure:
        reason = failure.strerror or failure
        raise BridgeError(f"can't reach a bridge's control socket at {path}: {reason}") from None
    except (ValueError, pack.exceptions.UnpackException):
        raise BridgeError(f"what listens on {path} is no bridge's control socket") from None
    if error is not None:
        raise BridgeError(f"the bridge at {path} says: {error}")
    return result
