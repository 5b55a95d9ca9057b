# SPDX-License-Identifier: BSD-3-Clause
"""The sockets that clients come to: what is in the way, whose file it is, what can be inherited."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from vfio_user_bridge.errors import BridgeError, UsageError
from vfio_user_bridge.listener import inherited, listen, listen_at


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.sock"


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    """What is put here is closed after the test."""
    with ExitStack() as stack:
        yield stack


def unix_socket(kind: int = socket.SOCK_STREAM) -> socket.socket:
    return socket.socket(socket.AF_UNIX, kind)


def test_clients_can_connect_until_it_is_closed(path: Path) -> None:
    with closing(listen(path, 0o600)), unix_socket() as client:
        client.connect(str(path))
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o700])
def test_the_file_has_its_mode_whatever_the_umask(path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        with closing(listen(path, mode)):
            assert stat.S_IMODE(path.stat().st_mode) == mode
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)


def test_a_stale_socket_is_replaced(path: Path) -> None:
    with unix_socket() as gone:
        gone.bind(str(path))
    with closing(listen(path, 0o600)), unix_socket() as client:
        client.connect(str(path))


def test_a_live_one_is_refused(path: Path) -> None:
    with closing(listen(path, 0o600)):
        with pytest.raises(BridgeError, match="another server is listening"):
            listen(path, 0o600)
        assert path.is_socket()


def test_a_live_one_that_is_too_busy_to_answer_is_refused_too(
    path: Path, resources: ExitStack
) -> None:
    busy = resources.enter_context(unix_socket())
    busy.bind(str(path))
    busy.listen(0)
    waiting = resources.enter_context(unix_socket())
    waiting.connect(str(path))
    rescue = threading.Timer(2, busy.close)
    rescue.start()
    try:
        with pytest.raises(BridgeError, match="another server is listening"):
            listen(path, 0o600).close()
    finally:
        rescue.cancel()
        rescue.join()
    assert path.is_socket()


def test_what_is_no_socket_is_refused_and_stays(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(BridgeError, match="exists and is no socket"):
        listen(path, 0o600)
    assert path.read_text() == "precious"


def test_a_symlink_is_no_socket(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BridgeError, match="exists and is no socket"):
        listen(path, 0o600)
    assert path.is_symlink()


@pytest.mark.parametrize("name", ["missing/a.sock", "long" * 30])
def test_a_path_that_can_not_be_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(BridgeError, match=r"can't listen on .*: .*(No such file|too long)"):
        listen(tmp_path / name, 0o600)


def test_the_file_of_another_server_stays(path: Path, tmp_path: Path) -> None:
    first = listen(path, 0o600)
    path.rename(tmp_path / "moved")
    with closing(listen(path, 0o600)):
        first.close()
        assert path.is_socket()


# ---- A path or a TCP port -------------------------------------------------------------------


@pytest.mark.parametrize("where", ["127.0.0.1:0", "[::1]:0"])
def test_a_tcp_port(where: str) -> None:
    with closing(listen_at(where, 0o600)) as listener:
        address, port = listener.address.rsplit(":", 1)
        assert address == where.removesuffix(":0")
        with socket.create_connection((address.strip("[]"), int(port))):
            pass
        with pytest.raises(BridgeError, match=r"can't listen on .*: Address already in use"):
            listen_at(listener.address, 0o600)


def test_a_port_is_free_again_at_once(resources: ExitStack) -> None:
    with closing(listen_at("127.0.0.1:0", 0o600)) as listener:
        address = listener.socket.getsockname()
        client = resources.enter_context(socket.create_connection(address))
        listener.socket.accept()[0].close()  # so that it is we who wait in TIME_WAIT
        assert client.recv(1) == b""
    listen_at(f"{address[0]}:{address[1]}", 0o600).close()


@pytest.mark.parametrize("where", ["a.sock", "./a:9105", "/tmp/[::1]:9105"])
def test_what_has_a_slash_or_no_colon_is_a_path(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    where = where.replace("/tmp", str(tmp_path))
    with closing(listen_at(where, 0o640)) as listener:
        assert stat.S_IMODE(Path(where).stat().st_mode) == 0o640
        assert listener.path == Path(where)


@pytest.mark.parametrize(
    "where",
    [
        *(":9105", "9105:", "localhost:9105", "127.1:9105", "::1:9105", "[127.0.0.1]:1"),
        *("127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "[::1]", "[::1]:-1", "[]:1"),
        *("\udcff:1", "\0:1"),
    ],
)
def test_neither(where: str) -> None:
    with pytest.raises(UsageError, match=r"give an address and a port, such as 127\.0\.0\.1"):
        listen_at(where, 0o600)


def test_another_hosts_address() -> None:
    with pytest.raises(BridgeError, match=r"192\.0\.2\.1:9105: Cannot assign requested address"):
        listen_at("192.0.2.1:9105", 0o600)


# ---- Inherited ------------------------------------------------------------------------------


def test_a_listening_socket_can_be_inherited(path: Path) -> None:
    with unix_socket() as sock:
        sock.bind(str(path))
        sock.listen()
        os.set_inheritable(sock.fileno(), True)
        listener = inherited(os.dup(sock.fileno()))
        assert not listener.socket.get_inheritable()
        listener.close()
        assert path.is_socket()


def test_other_sockets_can_not(path: Path, resources: ExitStack) -> None:
    datagrams = resources.enter_context(unix_socket(socket.SOCK_DGRAM))
    datagrams.bind(str(path))
    tcp = resources.enter_context(socket.socket(socket.AF_INET))
    tcp.listen()
    for sock in (datagrams, tcp, resources.enter_context(unix_socket())):
        with pytest.raises(BridgeError, match="is no listening UNIX stream socket"):
            inherited(sock.fileno())
        sock.getsockname()  # it is still open, and its owner's


def test_what_is_no_socket_can_not(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(BridgeError, match="is no socket"):
        inherited(file.fileno())


@pytest.mark.parametrize("fd", [-1, 1 << 20, 1 << 40])
def test_what_is_not_open_can_not(fd: int) -> None:
    with pytest.raises(BridgeError, match=f"file descriptor {fd} is no socket"):
        inherited(fd)
