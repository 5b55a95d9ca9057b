# SPDX-License-Identifier: BSD-3-Clause
"""HTTP (RFC 9112) as far as a page takes that is made anew for each request: GET and HEAD of it.

Who asks is not trusted to be quick, or to make sense, or to be few. One thread answers all, a few
at a time, none for long, and not often enough to keep the interpreter from those who serve.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

from .listener import Listener

log = logging.getLogger(__name__)

_MOST = 32  # visitors at a time; one more, and who has been here longest goes
_PATIENCE = 5.0  # seconds that each may stay
_PAUSE = 0.05  # seconds between one round and the next
_PAUSE_AFTER_FAILURE = 1.0
_MAX_REQUEST = 8192  # bytes, as far as the header's end
_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Page:
    """What is to be had, and where."""

    path: str
    content_type: str
    content: Callable[[], bytes]


class _Visitor:
    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.deadline = time.monotonic() + _PATIENCE
        self.request = b""
        self.answer: bytes | None = None  # what is left of it, once there is one


class Httpd:
    """Offers *page* on *listener*, which is its to close from now on."""

    what = "metrics"

    def __init__(self, listener: Listener, page: Page) -> None:
        self.listener = listener
        self._page = page
        self._visitors: dict[socket.socket, _Visitor] = {}  # who came first is first
        self._selector = selectors.PollSelector()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._content: bytes | None = None  # as made in this round

    def start(self) -> None:
        """Answer from now on."""
        self.listener.socket.setblocking(False)
        self._selector.register(self.listener.socket, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="httpd", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self.listener.socket.shutdown(socket.SHUT_RDWR)  # wakes poll()
        if self._thread:
            self._thread.join(_PATIENCE)
        self.listener.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._round()
            except (OSError, MemoryError) as error:
                if self._closing.is_set():
                    break
                why = str(error) or "no memory"
                log.error("%s: the host fails us: %s; trying again", self._page.path, why)
                self._closing.wait(_PAUSE_AFTER_FAILURE)
            except Exception:
                log.exception("%s: a defect of the bridge, please report it", self._page.path)
            self._closing.wait(_PAUSE)
        for visitor in list(self._visitors.values()):
            self._let_go(visitor)

    def _round(self) -> None:
        """Go on with everyone who can go on; those whose time is up go."""
        self._content = None
        now = time.monotonic()
        first = next(iter(self._visitors.values()), None)
        for key, _ in self._selector.select(max(0.0, first.deadline - now) if first else None):
            if key.fileobj is self.listener.socket:
                self._admit()
            else:
                self._go_on(key.data)
        for visitor in list(self._visitors.values()):
            if visitor.deadline <= time.monotonic():
                self._let_go(visitor)

    def _admit(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            for _ in range(_MOST):
                sock, _address = self.listener.socket.accept()
                visitor = self._visitors[sock] = _Visitor(sock)
                self._selector.register(sock, selectors.EVENT_READ, visitor)
                if len(self._visitors) > _MOST:
                    self._let_go(next(iter(self._visitors.values())))

    def _go_on(self, visitor: _Visitor) -> None:
        try:
            if visitor.answer:
                self._send(visitor)
            elif not (data := visitor.socket.recv(_MAX_REQUEST)):
                self._let_go(visitor)
            elif visitor.answer is None:
                self._read(visitor, data)
            # else what comes after the request is of no interest: but to hang up without reading it
            # could take the answer from them
        except BlockingIOError:
            pass
        except OSError:
            self._let_go(visitor)

    def _read(self, visitor: _Visitor, data: bytes) -> None:
        visitor.request += data
        if _END in visitor.request:
            visitor.answer = self._answer(visitor.request)
        elif len(visitor.request) >= _MAX_REQUEST:
            visitor.answer = _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            return
        self._selector.modify(visitor.socket, selectors.EVENT_WRITE, visitor)
        self._send(visitor)

    def _send(self, visitor: _Visitor) -> None:
        assert visitor.answer
        visitor.answer = visitor.answer[visitor.socket.send(visitor.answer) :]
        if not visitor.answer:
            visitor.socket.shutdown(socket.SHUT_WR)
            self._selector.modify(visitor.socket, selectors.EVENT_READ, visitor)

    def _let_go(self, visitor: _Visitor) -> None:
        self._visitors.pop(visitor.socket, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(visitor.socket)
        visitor.socket.close()

    def _answer(self, request: bytes) -> bytes:
        match request.partition(b"\r\n")[0].split(b" "):
            case [method, target, version] if version.startswith(b"HTTP/1."):
                pass
            case _:
                return _response(HTTPStatus.BAD_REQUEST)
        page = self._page
        if target.partition(b"?")[0] != page.path.encode():
            return _response(HTTPStatus.NOT_FOUND)
        if method not in (b"GET", b"HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, fields="Allow: GET, HEAD\r\n")
        if self._content is None:
            self._content = page.content()
        answer = _response(HTTPStatus.OK, self._content, page.content_type)
        return answer if method == b"GET" else answer[: answer.index(_END) + len(_END)]


def _response(
    status: HTTPStatus, body: bytes = b"", content_type: str = "text/plain", fields: str = ""
) -> bytes:
    body = body or f"{status.phrase}\n".encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Date: {formatdate(usegmt=True)}\r\n"
        f"{fields}Content-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
