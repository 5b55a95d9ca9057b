# SPDX-License-Identifier: BSD-3-Clause
"""Metrics by HTTP: who may have them, how, and that those who make no sense are in nobody's way."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from vfio_user_bridge.listener import listen_at
from vfio_user_bridge.management import httpd
from vfio_user_bridge.management.httpd import Httpd

PATIENCE = 10.0
CONTENT = b"one\ntwo\n"
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


class Site:
    """A page that is served, and what it has."""

    def __init__(self, where: str) -> None:
        self.content = CONTENT
        self.httpd = Httpd(listen_at(where, 0o600), lambda: self.content)
        self.httpd.start()

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

    def ask(
        self, method: str, path: str = "/metrics"
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
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
    assert not [thread for thread in threading.enumerate() if thread.name == "metrics"]
    assert not list(tmp_path.iterdir())


@pytest.fixture
def tcp() -> Iterator[Site]:
    site = Site("127.0.0.1:0")
    yield site
    site.httpd.close()


def test_the_page(site: Site) -> None:
    for method, content in ("GET", CONTENT), ("HEAD", b""):
        status, fields, body = site.ask(method)
        assert (status, body) == (200, content)
        assert fields["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert fields["Content-Length"] == str(len(CONTENT))
    site.content = b"later\n"
    assert site.ask("GET", "/metrics?name=value")[2] == b"later\n"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/metrics/", 404),
        ("GET", "/../etc/passwd", 404),
        ("HEAD", "/other", 404),
        ("POST", "/metrics", 501),
        ("DELETE", "/metrics", 501),
        ("get", "/metrics", 501),
    ],
)
def test_no_other_and_nothing_else_with_it(tcp: Site, method: str, path: str, status: int) -> None:
    assert tcp.ask(method, path)[0] == status


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1 more\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\xff\r\n\r\n", b"400"),  # TLS
        (b"GET /metrics HTTP/2.0\r\n\r\n", b"505"),
        (b"GET /" + b"x" * 65532, b"414"),
        (REQUEST[:-2] + b"X: " + bytes(65534), b"431"),
        (REQUEST[:-2] + 101 * b"X: x\r\n", b"431"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_requests_that_make_no_sense(tcp: Site, sent: bytes, status: bytes) -> None:
    assert status in tcp.converse(sent)
    assert tcp.ask("GET")[0] == 200


def test_a_request_in_many_pieces(site: Site) -> None:
    assert site.converse(*(bytes([byte]) for byte in REQUEST)).endswith(CONTENT)


@pytest.mark.parametrize("said", [b"", b"G", REQUEST[:-1], REQUEST, bytes(1 << 22)])
def test_who_hangs_up_early(tcp: Site, said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with tcp.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1]) + bytes(7))  # by RST
        try:
            sock.sendall(said)
        except ConnectionError:
            assert len(said) > 1 << 16
    assert tcp.ask("GET")[0] == 200
    assert not caplog.text


@pytest.mark.parametrize("pieces", [[REQUEST[:-2]], [b"x"] * 1000], ids=["silent", "slow"])
def test_who_takes_time_to_ask(
    site: Site, monkeypatch: pytest.MonkeyPatch, pieces: list[bytes]
) -> None:
    """They get some, and no more; the next is answered."""
    monkeypatch.setattr(httpd, "_PATIENCE", 0.3)
    begun = time.monotonic()
    with suppress(ConnectionError):
        assert site.converse(*pieces) == b""
    assert 0.2 < time.monotonic() - begun < PATIENCE / 2
    assert site.ask("GET")[0] == 200


def test_who_takes_time_to_read(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(httpd, "_PATIENCE", 0.3)
    site.content = bytes(32 << 20)  # more than any buffer
    with site.connect() as deaf:
        deaf.sendall(REQUEST)
        assert site.ask("GET", "/other")[0] == 404
    assert not caplog.text


def test_one_who_says_nothing_does_not_delay_the_end(tcp: Site) -> None:
    with tcp.connect() as silent:
        silent.sendall(b"G")
        time.sleep(0.2)
        begun = time.monotonic()
        tcp.httpd.close()
        assert time.monotonic() - begun < 0.5
        assert read(silent) == b""


def test_many_ask(tcp: Site) -> None:
    """All are answered, no more than so many a second."""
    begun = time.monotonic()
    crowd = [tcp.connect() for _ in range(30)]
    for sock in crowd:
        sock.sendall(REQUEST)
    for sock in crowd:
        with sock:
            assert read(sock).endswith(CONTENT)
    assert time.monotonic() - begun >= 29 * Httpd.pause


def test_a_defect_is_told_and_others_are_answered(
    tcp: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tcp, "content", None)
        assert tcp.converse(REQUEST) == b""
    assert tcp.ask("GET")[0] == 200
    assert "metrics: a defect of the bridge" in caplog.text
