# SPDX-License-Identifier: BSD-3-Clause
"""The control socket, and what `status` says by it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from vfio_user_bridge import __version__
from vfio_user_bridge.cli import main
from vfio_user_bridge.control import ask
from vfio_user_bridge.errors import BridgeError

from . import client as c
from .descriptors import memory_files
from .running_server import PATIENCE, RunningServer, server
from .wire import dma_map

Output = pytest.CaptureFixture[str]


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "control"


@pytest.fixture
def edu(tmp_path: Path, control: Path) -> Iterator[RunningServer]:
    path = tmp_path / "edu.sock"
    with server(path, "--socket-path", str(path), "--control", str(control)) as running:
        yield running


def converse(control: Path, *pieces: bytes) -> list[Any]:
    """Send these, and no more; gives what is answered until it hangs up."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(control))
        with contextlib.suppress(BrokenPipeError):
            for piece in pieces:
                sock.sendall(piece)
            sock.shutdown(socket.SHUT_WR)
        unpacker = msgpack.Unpacker()
        with contextlib.suppress(ConnectionResetError):
            while data := sock.recv(1 << 16):
                unpacker.feed(data)
    return list(unpacker)


def request(number: int, method: str, *params: object) -> bytes:
    packed: bytes = msgpack.packb([0, number, method, params])
    return packed


def test_it_is_for_its_user_alone_and_goes_at_the_end(edu: RunningServer, control: Path) -> None:
    assert control.stat().st_mode & 0o777 == 0o600
    edu.stop()
    assert not control.exists()


def test_no_client(edu: RunningServer, control: Path) -> None:
    status = ask(control, "status")
    assert status["version"] == __version__
    assert status["pid"] == edu.process.pid
    (device,) = status["devices"]
    assert device["name"], device["socket"] == ("edu", str(edu.path))
    assert (device["state"], device["client"], device["messages"]) == ("no client", "", {})
    in_force = " ".join(status["confinement"]["in_force"])
    for what in ("no new privileges", "no core dumps", "Landlock", "seccomp"):
        assert what in in_force
    assert status["confinement"]["lacking"] == []


def test_a_client(edu: RunningServer, control: Path) -> None:
    with edu.client() as client, memory_files(1, 3 * 4096) as files:
        client.ask(c.DMA_MAP, dma_map(0, 4096), files)
        client.ask(c.DMA_MAP, dma_map(8192, 8192), files)
        assert client.refused(c.DMA_MAP, dma_map(0, 4096), files)
        (device,) = ask(control, "status")["devices"]
    assert (device["state"], device["client"]) == (
        "serving",
        f"pid {os.getpid()}, uid {os.getuid()}",
    )
    assert (device["maps"], device["mapped"], device["refused"]) == (2, 3 * 4096, 1)
    assert device["messages"] == {"VERSION": 1, "DMA_MAP": 3}
    assert 0 <= device["connected"] < PATIENCE


def test_the_command(edu: RunningServer, control: Path, capsys: Output) -> None:
    with edu.client():
        assert main(["status", "--control", str(control)]) == 0
        text = capsys.readouterr().out
        assert main(["status", "--control", str(control), "--json"]) == 0
    for line in (
        f"edu: serving, on {edu.path}\n",
        f"  client:   pid {os.getpid()}, uid {os.getuid()}, for ",
        "  maps:     0, 0 bytes\n",
        "  messages: VERSION 1\n",
        "  confined: no core dumps\n",
    ):
        assert line in text
    assert json.loads(capsys.readouterr().out)["devices"][0]["name"] == "edu"


def test_requests_in_one_piece_or_in_many_are_answered_in_order(
    control: Path, edu: RunningServer
) -> None:
    both = request(7, "status") + request(8, "no such")
    for pieces in ([both], [both[:1], both[1:]], [bytes([byte]) for byte in both]):
        first, second = converse(control, *pieces)
        assert (first[:3], first[3]["pid"]) == ([1, 7, None], edu.process.pid)
        assert second == [1, 8, "there is no method 'no such'; there are: status", None]


def test_wrong_parameters(control: Path, edu: RunningServer) -> None:
    ((_, number, error, result),) = converse(control, request(1, "status", "more"))
    assert (number, result) == (1, None)
    assert "positional argument" in error
    assert "Traceback" not in edu.log()


@pytest.mark.parametrize(
    "rubbish",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xc1",
        msgpack.packb(7),
        msgpack.packb([2, "status", []]),
        msgpack.packb([0, 1, "status"]),
        msgpack.packb([0, 1, b"status", []]),
        b"\x91" * 5000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff" + bytes(100_000),
    ],
    ids=["text", "no code", "number", "notification", "short", "bytes", "deep", "long", "huge"],
)
def test_who_talks_rubbish_is_put_out_and_the_next_is_answered(
    edu: RunningServer, control: Path, rubbish: bytes
) -> None:
    assert converse(control, rubbish) == []
    assert ask(control, "status")["pid"] == edu.process.pid
    assert "Traceback" not in edu.log()


def test_nobody_there(control: Path, capsys: Output) -> None:
    assert main(["status", "--control", str(control)]) == 1
    says = f"vfio-user-bridge: can't reach a bridge's control socket at {control}: No such file"
    assert capsys.readouterr().err.startswith(says)


def test_somebody_else_there(edu: RunningServer) -> None:
    """The device's socket, by mistake."""
    with pytest.raises(BridgeError, match="is no bridge's control socket"):
        ask(edu.path, "status")
