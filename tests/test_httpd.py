# SPDX-License-Identifier: BSD-3-Clause
"""A page by HTTP: who may have it, how, and that those who make no sense are in nobody's way."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest

from vfio_user_bridge import httpd
from vfio_user_bridge.httpd import Httpd, Page
from vfio_user_bridge.listener import listen_at

PATIENCE = 10.0
CONTENT = b"one\ntwo\n"
REQUEST = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"


class Site:
    """A page that is served, and what it does."""

    def __init__(self, where: str) -> None:
        self.content = CONTENT
        self.made = 0
        self.httpd = Httpd(listen_at(where, 0o600), Page("/page", "text/x-page", self._make))
        self.httpd.start()

    def _make(self) -> bytes:
        self.made += 1
        return self.content

    def connect(self) -> socket.socket:
        address = self.httpd.listener.socket.getsockname()
        sock = socket.socket(self.httpd.listener.socket.family)
        sock.connect(address)
        sock.settimeout(PATIENCE)
        return sock

    def converse(self, *pieces: bytes) -> bytes:
        """Send these, and no more; gives what is answered until it hangs up."""
        with self.connect() as sock:
            for piece in pieces:
                sock.sendall(piece)
                time.sleep(0.01 if len(pieces) > 1 else 0)
            return read(sock)

    def ask(self, method: str, path: str = "/page") -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, header fields and body, as the standard library understands them."""
        with self.connect() as sock:
            sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            response = http.client.HTTPResponse(sock, method=method)
            response.begin()
            with response:
                return response.status, response.headers, response.read()


def read(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(1 << 16):
        data += piece
    return data


@pytest.fixture(params=["127.0.0.1:0", "[::1]:0", "page.sock"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    where = request.param
    site = Site(where if ":" in where else str(tmp_path / where))
    yield site
    site.httpd.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "httpd"]
    assert not list(tmp_path.iterdir())


@pytest.fixture
def tcp() -> Iterator[Site]:
    site = Site("127.0.0.1:0")
    yield site
    site.httpd.close()


def test_the_page(site: Site) -> None:
    status, fields, body = site.ask("GET")
    assert (status, body) == (200, CONTENT)
    assert fields["Content-Type"] == "text/x-page"
    assert fields["Connection"] == "close"
    assert site.ask("HEAD")[::2] == (200, b"")
    assert site.ask("HEAD")[1]["Content-Length"] == str(len(CONTENT))
    site.content = b"later\n"
    assert site.ask("GET", "/page?name=value")[2] == b"later\n"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/page/", 404),
        ("GET", "/../etc/passwd", 404),
        ("POST", "/other", 404),
        ("POST", "/page", 405),
        ("DELETE", "/page", 405),
        ("get", "/page", 405),
    ],
)
def test_no_other_and_nothing_else_with_it(tcp: Site, method: str, path: str, status: int) -> None:
    said, fields, _ = tcp.ask(method, path)
    assert said == status
    assert fields.get("Allow") == ("GET, HEAD" if status == 405 else None)
    assert tcp.made == 0


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\r\n\r\n", b"400 "),
        (b"GET /page\r\n\r\n", b"400 "),
        (b"GET  /page HTTP/1.1\r\n\r\n", b"400 "),
        (b"GET /page HTTP/2.0\r\n\r\n", b"400 "),
        (b"GET /page HTTP/1.1 more\r\n\r\n", b"400 "),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\xff\r\n\r\n", b"400 "),  # TLS
        (b"GET /\xff HTTP/1.1\r\n\r\n", b"404 "),
        (REQUEST[:-2] + b"X: " + bytes(1 << 20), b"431 "),
        (b"GET /" + b"x" * 10_000, b"431 "),
        (REQUEST + b"more" * 100_000, b"200 "),
        (REQUEST * 100, b"200 "),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_requests_in_one_piece(tcp: Site, sent: bytes, status: bytes) -> None:
    answer = tcp.converse(sent)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert answer.count(b"HTTP/1.1") == 1
    assert tcp.ask("GET")[0] == 200


def test_a_sentin_many_pieces(site: Site) -> None:
    assert site.converse(*(bytes([byte]) for byte in REQUEST)).endswith(CONTENT)


@pytest.mark.parametrize("said", [b"", b"G", REQUEST[:-1]])
def test_who_hangs_up_early(tcp: Site, said: bytes) -> None:
    with tcp.connect() as sock:
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        assert read(sock) == b""
    tcp.connect().close()
    assert tcp.ask("GET")[0] == 200


def test_a_page_larger_than_any_buffer_to_one_who_takes_time(site: Site) -> None:
    site.content = bytes(2 << 20)
    with site.connect() as slow:
        slow.sendall(REQUEST)
        slow.recv(1)
        others = {site.ask("HEAD")[0] for _ in range(3)}
        assert (others, len(read(slow)) > len(site.content)) == ({200}, True)


def test_who_says_nothing_or_reads_nothing_goes_when_time_is_up(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(httpd, "_PATIENCE", 0.3)
    site.content = bytes(2 << 20)
    with site.connect() as silent, site.connect() as deaf:
        silent.sendall(REQUEST[:-2])
        deaf.sendall(REQUEST)
        assert read(silent) == b""
        time.sleep(0.5)
        with pytest.raises(ConnectionError):
            deaf.sendall(bytes(1 << 22))


def test_one_of_many(tcp: Site) -> None:
    """Of 200 who say nothing, those who came first make way; the next is answered at once."""
    with ExitStack() as stack:
        crowd = [stack.enter_context(tcp.connect()) for _ in range(200)]
        for number in range(3):
            assert tcp.ask("GET")[0] == 200, number
        assert read(crowd[0]) == b""
        crowd[-1].sendall(REQUEST)
        assert read(crowd[-1]).endswith(CONTENT)


def test_it_is_not_made_more_often_than_so_many_times_a_second(tcp: Site) -> None:
    begun = time.monotonic()
    for _ in range(3):
        with ExitStack() as stack:
            crowd = [stack.enter_context(tcp.connect()) for _ in range(30)]
            for sock in crowd:
                sock.sendall(REQUEST)
            assert all(read(sock).endswith(CONTENT) for sock in crowd)
    elapsed = time.monotonic() - begun
    assert 3 <= tcp.made <= elapsed / httpd._PAUSE + 1  # noqa: SLF001 - what is promised


def test_a_defect_is_told_and_others_are_answered(
    tcp: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(httpd, "_PATIENCE", 0.3)
    content, tcp.content = tcp.content, cast(bytes, 7)
    assert tcp.converse(REQUEST) == b""
    assert "/page: a defect of the bridge" in caplog.text
    tcp.content = content
    assert tcp.ask("GET")[0] == 200
