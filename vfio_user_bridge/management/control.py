# SPDX-License-Identifier: BSD-3-Clause
"""The operator's socket: MessagePack-RPC (its specification is in msgpack-rpc/spec.md), both ends.

A request is ``[0, msgid, method, params]``, its response ``[1, msgid, error, result]``. A method
that writes a file gets it from the operator, open, beside the request (SCM_RIGHTS): a bridge that
is confined opens none. Whoever may open the socket is trusted with what the methods do, but not to
be quick, or to make sense.
"""

from __future__ import annotations

import inspect
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from vfio_user_bridge import extras
from vfio_user_bridge.ancillary import receive_waiting, send_all
from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.listener import Listener

from .service import Service

log = logging.getLogger(__name__)

_REQUEST, _RESPONSE = 0, 1
_PATIENCE = 5.0  # seconds, for the other end
_VISIT = 10.0  # seconds that one may stay
#: seconds that the bridge may take for it: what the kernel waits for a device, and the port's turn
_SLOW = {"reset": 90.0, "hand-over": 90.0}
_MAX_REQUEST = 1 << 16  # bytes
_MAX_RESPONSE = 1 << 24
_MAX_FILES = 4  # that wait to be taken

Methods = Mapping[str, Callable[..., object]]


def msgpack() -> ModuleType:
    """:raise BridgeError: it isn't installed"""
    return extras.load("msgpack", "the control socket")


class NoAnswerError(BridgeError):
    """The bridge hasn't said whether it does what it was asked."""


class EndedError(BridgeError):
    """The other end has hung up instead of an answer; or its answer is none."""


class Control(Service):
    """Answers requests on *listener*.

    :param methods: by name
    :param writers: those whose first parameter is a descriptor that came along, closed after them
    :raise BridgeError: msgpack isn't installed; *listener* is closed
    """

    what = "control socket"

    def __init__(self, listener: Listener, methods: Methods, writers: Methods) -> None:
        super().__init__(listener)
        self._methods, self._writers = methods, writers
        try:
            self._msgpack = msgpack()  # now: confined, it might not be found
        except BridgeError:
            listener.close()
            raise

    def _converse(self, visitor: socket.socket) -> None:
        deadline = time.monotonic() + _VISIT
        unpacker = self._msgpack.Unpacker(max_buffer_size=_MAX_REQUEST)
        files: list[int] = []
        try:
            while (left := deadline - time.monotonic()) > 0:
                visitor.settimeout(min(left, _PATIENCE))
                data, came = receive_waiting(visitor, 4096)
                files += came
                if not data:
                    return
                if len(files) > _MAX_FILES:
                    raise ValueError("it sent too many files")
                unpacker.feed(data)
                for request in unpacker:
                    visitor.sendall(self._msgpack.packb(self._answer(request, files)))
        except (OSError, ValueError, self._msgpack.exceptions.UnpackException) as error:
            log.info("control: put out: %s", error)
        finally:
            for fd in files:
                os.close(fd)

    def _answer(self, request: object, files: list[int]) -> list[object]:
        match request:
            case [int(kind), int(number), str(name), list(params)] if kind == _REQUEST:
                return [_RESPONSE, number, *self._call(name, files, params)]
        raise ValueError("it sent no request")

    def _call(self, name: str, files: list[int], params: list[Any]) -> tuple[str | None, object]:
        """Error and result."""
        try:
            return None, self._result(name, files, params)
        except BridgeError as error:
            return str(error), None
        except Exception:
            log.exception("control: a defect of the bridge in %s, please report it", name)
            return "a defect of the bridge; its log says more", None

    def _result(self, name: str, files: list[int], params: list[Any]) -> object:
        """:raise BridgeError: there is none, and why"""
        writes = name in self._writers
        method = self._writers.get(name) or self._methods.get(name)
        if method is None:
            known = ", ".join((*self._methods, *self._writers))
            raise BridgeError(f"there is no method {name!r}; there are: {known}")
        if writes and not files:
            raise BridgeError(f"{name} takes a file, open, beside the request")
        try:
            inspect.signature(method).bind(*files[:writes], *params)
        except TypeError as error:
            raise BridgeError(f"{name} takes other parameters: {error}") from None
        taken = [files.pop(0) for _ in range(writes)]
        try:
            return method(*taken, *params)
        except (OSError, MemoryError) as error:
            raise BridgeError(
                f"the host fails us: {str(error) or 'no memory'}; try again"
            ) from None
        finally:
            for fd in taken:
                os.close(fd)


def ask(
    path: Path, method: str, *params: object, files: Sequence[int] = (), hand: bool = False
) -> Any:
    """Call a method of the bridge whose control socket is at *path*; gives its result.

    :param files: descriptors that go with it
    :param hand: close them once they have gone, whatever comes of it

    :raise NoAnswerError: it is late
    :raise EndedError: it has ended, or is no bridge
    :raise BridgeError: nobody is there, or it refuses
    """
    pack = msgpack()
    patience = _SLOW.get(method, _PATIENCE)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_PATIENCE)
            sock.connect(str(path))
            try:
                send_all(sock, pack.packb([_REQUEST, 0, method, params]), files)
            finally:
                for fd in files if hand else ():
                    os.close(fd)
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(patience)
            # To the end: then it has nothing open for us any more.
            answer = pack.unpackb(sock.makefile("rb").read(_MAX_RESPONSE))
    except TimeoutError:
        raise NoAnswerError(
            f"the bridge at {path} doesn't answer within {patience:.0f} s: it is busy or stopped,"
            " and may still do what it was asked; see its log"
        ) from None
    except (BrokenPipeError, ConnectionResetError):
        answer = None
    except OSError as failure:
        reason = failure.strerror or failure
        raise BridgeError(
            f"can't reach a bridge's control socket at {path}: {reason}; give serve's --control"
        ) from None
    except (ValueError, pack.exceptions.UnpackException):
        answer = None
    match answer:
        case [int(kind), _, error, result] if kind == _RESPONSE:
            pass
        case _:
            raise EndedError(
                f"what listens on {path} is no bridge's control socket: give serve's --control"
            )
    if error is not None:
        raise BridgeError(f"the bridge at {path} says: {error}")
    return result
