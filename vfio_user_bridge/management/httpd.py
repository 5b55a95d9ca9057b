# SPDX-License-Identifier: BSD-3-Clause
"""Metrics by HTTP: the standard library's server, within bounds.

Who asks is not trusted to be quick, or to make sense. Nor are they answered so often that those
who serve would wait for the interpreter.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BufferedReader, RawIOBase
from socketserver import BaseServer
from typing import Any

from vfio_user_bridge.listener import Listener

from .service import Service

_PATH = "/metrics"
#: Of what prometheus_client's generate_latest() gives, whatever its release. make_wsgi_app() has
#: more formats, but who asks for "version=x" of one ends it in a TypeError (0.26).
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PATIENCE = 1.0  # seconds that a visitor may stay


class Httpd(Service):
    """Offers on *listener* what *content* makes, anew for each request."""

    what = "metrics"
    pause = 0.05

    def __init__(self, listener: Listener, content: Callable[[], bytes]) -> None:
        super().__init__(listener)
        self._server = BaseServer(listener.address, partial(_Handler, content))

    def _converse(self, visitor: socket.socket) -> None:
        with contextlib.suppress(OSError):  # they hung up
            self._server.finish_request(visitor, None)


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, content: Callable[[], bytes], *args: Any) -> None:
        self._content = content
        super().__init__(*args)

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = BufferedReader(_Request(self.connection))

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != _PATH:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        content = self._content()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", _CONTENT_TYPE)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def log_message(self, *_args: object) -> None:
        """Nobody wants to know."""


class _Request(RawIOBase):
    """What *visitor* sends in its time, which http.server would begin anew with each piece.

    What is left of that is its timeout, so it is all that the answer may take.
    """

    def __init__(self, visitor: socket.socket) -> None:
        self._visitor = visitor
        self._deadline = time.monotonic() + _PATIENCE

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._visitor.settimeout(left)
        return self._visitor.recv_into(buffer)
