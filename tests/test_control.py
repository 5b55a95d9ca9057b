# SPDX-License-Identifier: BSD-3-Clause
"""The control socket, and what `status` says by it."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import msgpack
import pytest

from vfio_user_bridge import __version__
from vfio_user_bridge.cli import main
from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.management.control import ask

from . import client as c
from .descriptors import eventfds, memory_files
from .holdings import await_holdings, holdings
from .processes import await_state
from .running_server import PATIENCE, RunningServer, server
from .wire import dma_map, message, region, set_irqs, u32

Output = pytest.CaptureFixture[str]

NONE, EVENTFD, TRIGGER = 1, 4, 32  # VFIO_IRQ_SET_*
MSI = 1
LIVENESS = 4  # edu's register: it reads as the inverse of what was written


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
    assert status["log_level"] == "info"
    assert status["devices"] == [
        {
            "name": "edu",
            "socket": str(edu.path),
            "state": "no client",
            "draining": False,
            "client": None,
            "clients": 0,
            "maps": 0,
            "mapped": 0,
            "irqs": {},
            "messages": {},
            "refused": 0,
            "rules": [],
            "recording": None,
            "last_error": None,
        }
    ]
    in_force = " ".join(status["confinement"]["in_force"])
    for what in ("no new privileges", "no core dumps", "Landlock", "seccomp"):
        assert what in in_force
    assert status["confinement"]["lacking"] == []


def test_a_client(edu: RunningServer, control: Path) -> None:
    before = time.time()
    with edu.client() as client, memory_files(1, 3 * 4096) as files, eventfds(1) as bells:
        client.ask(c.DMA_MAP, dma_map(0, 4096), files)
        client.ask(c.DMA_MAP, dma_map(8192, 8192), files)
        assert client.refused(c.DMA_MAP, dma_map(0, 4096), files)
        client.ask(c.SET_IRQS, set_irqs(EVENTFD | TRIGGER, MSI, 0, 1), bells)
        (device,) = ask(control, "status")["devices"]
        client.ask(c.SET_IRQS, set_irqs(NONE | TRIGGER, MSI, 0, 0))
        assert ask(control, "status")["devices"][0]["irqs"] == {}
    after = time.time()
    assert device["state"] == "serving"
    assert (device["client"]["pid"], device["client"]["uid"]) == (os.getpid(), os.getuid())
    assert before - 1 <= device["client"]["since"] <= after
    assert 0 <= device["client"]["connected"] <= after - before + 1
    assert (device["maps"], device["mapped"], device["refused"]) == (2, 3 * 4096, 1)
    assert device["irqs"] == {"MSI": 1}
    counts = {command: figures["count"] for command, figures in device["messages"].items()}
    assert counts == {"VERSION": 1, "DMA_MAP": 3, "DEVICE_SET_IRQS": 1}
    for figures in device["messages"].values():
        assert 0 < figures["p50"] <= figures["p90"] <= figures["p99"] <= figures["max"]
        assert figures["max"] <= 1e6 * (after - before) * 9 / 8
    error = device["last_error"]
    assert before - 1 <= error["time"] <= after
    assert error["text"] == "refused DMA_MAP: 0x1000 bytes at 0x0 are mapped already"


def test_what_is_left_of_a_client(edu: RunningServer, control: Path) -> None:
    with edu.client() as client:
        client.socket.sendall(message(c.RESET, bytes(1 << 21))[:64])
        client.wait_until_hung_up()
    device = wait_for_state(control, "no client")
    assert (device["client"], device["messages"], device["refused"]) == (None, {}, 0)
    assert device["clients"] == 1
    assert device["last_error"]["text"].startswith("put out: a message of 2097168 bytes; ")


def wait_for_state(control: Path, state: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        device: dict[str, Any] = ask(control, "status")["devices"][0]
        if device["state"] == state:
            return device
        time.sleep(0.01)
    raise AssertionError(f"not {state}: {device}")


def test_the_command(edu: RunningServer, control: Path, capsys: Output) -> None:
    with edu.client() as client, memory_files(1, 4096) as files:
        client.ask(c.DMA_MAP, dma_map(0, 4096), files)
        assert main(["status", "--control", str(control)]) == 0
        text = capsys.readouterr().out
        assert main(["status", "--control", str(control), "--json"]) == 0
    for line in (
        f"vfio-user-bridge {__version__}, pid {edu.process.pid}\n",
        "edu: serving\n",
        f"  socket:     {edu.path}\n",
        f"  client:     pid {os.getpid()}, uid {os.getuid()}\n",
        "  DMA maps:   1, 4,096 bytes\n",
        "  interrupts: none\n",
        "  refused:    0\n",
        "  clients:    1 since the start\n",
    ):
        assert line in text
    assert re.search(r"^  MESSAGES +COUNT +p50 µs +p90 µs +p99 µs +max µs$", text, re.MULTILINE)
    assert re.search(r"^  DMA_MAP +1( +[0-9,]+\.[0-9]){4}$", text, re.MULTILINE)
    assert json.loads(capsys.readouterr().out)["devices"][0]["name"] == "edu"


@pytest.mark.usefixtures("edu")
def test_watching(control: Path) -> None:
    """In a pipe it is one status after the other."""
    command = [sys.executable, "-m", "vfio_user_bridge", "status", "--watch", "--control"]
    with subprocess.Popen([*command, str(control)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        seen = [line for line, _ in zip(process.stdout, range(11), strict=False)]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    assert seen.count("edu: no client\n") >= 2


def test_watching_a_bridge_that_is_killed(edu: RunningServer, control: Path) -> None:
    command = [sys.executable, "-m", "vfio_user_bridge", "status", "--watch", "--control"]
    with subprocess.Popen([*command, str(control)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert "edu: no client\n" in (process.stdout.readline() for _ in range(9))
        edu.process.kill()
        lines = iter(process.stdout.readline, "")
        away = list(itertools.islice((line for line in lines if "can't reach" in line), 2))
        process.terminate()
    assert len(away) == 2


# ---- What can be done ---------------------------------------------------------------------------


def tell(control: Path, *words: str) -> int:
    return main(["control", *words, "--control", str(control)])


def test_resetting_under_a_client(edu: RunningServer, control: Path) -> None:
    with edu.client() as client:
        client.ask(c.REGION_WRITE, region(LIVENESS, 0, b"abcd"))
        assert tell(control, "reset") == 0
        assert client.ask(c.REGION_READ, region(LIVENESS, 0, 4)) == region(LIVENESS, 0, bytes(4))
    assert "edu: reset by the operator" in edu.log()


@pytest.mark.usefixtures("edu")
def test_resetting_without_a_client(control: Path) -> None:
    assert tell(control, "reset", "edu") == 0


def test_disconnecting(edu: RunningServer, control: Path, capsys: Output) -> None:
    with edu.client() as client:
        assert tell(control, "disconnect") == 0
        client.wait_until_hung_up()
    wait_for_state(control, "no client")
    with edu.client():
        pass  # the next is welcome
    wait_for_state(control, "no client")
    assert tell(control, "disconnect") == 1
    assert capsys.readouterr().err.endswith(" says: edu has no client\n")


def test_draining(edu: RunningServer, control: Path) -> None:
    with edu.client() as client:
        assert tell(control, "drain") == 0
        client.ask(c.GET_INFO, u32(16, 0, 0, 0))  # who is there stays
        (device,) = ask(control, "status")["devices"]
        assert (device["state"], device["draining"]) == ("serving", True)
    wait_for_state(control, "no client")
    with contextlib.closing(edu.connect()) as refused:
        refused.wait_until_hung_up()
    assert "refused pid" in edu.log()
    assert "the operator lets no client in" in edu.log()
    assert tell(control, "admit", "edu") == 0
    with edu.client():
        pass


def test_the_level_of_the_log(edu: RunningServer, control: Path) -> None:
    assert tell(control, "log-level", "error") == 0
    assert ask(control, "status")["log_level"] == "error"
    assert tell(control, "drain") == 0
    assert "refused" not in edu.log()
    assert tell(control, "log-level", "all") == 2


def test_recording(edu: RunningServer, control: Path, tmp_path: Path) -> None:
    """The bridge is confined: it could make no file."""
    trace = tmp_path / "edu.trace"
    with edu.client() as client:
        client.ask(c.REGION_READ, region(0, 0, 4))
        assert tell(control, "record", str(trace), "--limit", "1M") == 0
        client.ask(c.REGION_WRITE, region(LIVENESS, 0, b"abcd"))
        (device,) = ask(control, "status")["devices"]
        assert tell(control, "stop-recording", "edu") == 0
        client.ask(c.REGION_READ, region(LIVENESS, 0, 4))
        assert ask(control, "status")["devices"][0]["recording"] is None
    recording = device["recording"]
    assert (recording["records"], recording["limit"]) == (1, 1 << 20)
    assert 0 < recording["bytes"] < 1 << 20
    assert trace.stat().st_mode & 0o777 == 0o600
    header, write, end = msgpack.Unpacker(io.BytesIO(trace.read_bytes()))
    assert header["device"] == "edu"
    assert (write[0], write[3:]) == (1, [0, 0, LIVENESS, 4, b"abcd"])
    assert (end[0], end[4:]) == (7, ["stopped"])


def test_rules_of_a_policy(tmp_path: Path, control: Path, capsys: Output) -> None:
    policy, path = tmp_path / "policy", tmp_path / "edu.sock"
    rule = '[[rule]]\nregion = "bar0"\noffset = 4\naction = "deny"\nnote = "quiet"\n'
    policy.write_text(rule)
    options = ("--socket-path", str(path), "--control", str(control), "--policy", str(policy))
    with server(path, *options) as running, running.client() as client:
        client.ask(c.REGION_WRITE, region(LIVENESS, 0, b"abcd"))
        (device,) = ask(control, "status")["devices"]
        assert main(["status", "--control", str(control)]) == 0
    assert device["rules"] == [{"number": 1, "note": "quiet", "hits": 1}]
    assert "  policy:     rule 1 (quiet): 1 accesses\n" in capsys.readouterr().out


def test_recordings_that_cant_be(
    edu: RunningServer, control: Path, tmp_path: Path, capsys: Output
) -> None:
    full = tmp_path / "full"
    full.write_text("something")
    before = holdings(edu.process.pid)
    assert tell(control, "stop-recording") == 1
    assert tell(control, "record", str(tmp_path / "no folder" / "trace")) == 1
    assert tell(control, "record", str(full)) == 1
    assert tell(control, "record", str(tmp_path / "other"), "no such device") == 1
    refusals = capsys.readouterr().err.splitlines()
    for line, end in zip(
        refusals,
        (
            "edu isn't being recorded",
            f"can't record into {tmp_path}/no folder/trace: No such file or directory;"
            " choose another path, or make its folder",
            f"can't record into {full}: it is there already; remove it, or name another file",
            "no device 'no such device' is served here; there are: edu",
        ),
        strict=True,
    ):
        assert line.endswith(end)
    assert full.read_text() == "something"
    assert not (tmp_path / "other").exists()  # what was made in vain is gone
    with pytest.raises(BridgeError, match="record takes a file, open, beside the request"):
        ask(control, "record")
    with memory_files(1, 0) as files:
        with pytest.raises(BridgeError, match="limit is in bytes, not 'much'"):
            ask(control, "record", "edu", "much", files=files)
        with pytest.raises(
            BridgeError, match="record takes other parameters: too many positional arguments"
        ):
            ask(control, "record", "edu", 1 << 20, "more", files=files)
        with pytest.raises(BridgeError):  # it hangs up
            ask(control, "status", files=files * 5)
        assert ask(control, "status", files=files)["pid"] == edu.process.pid
    await_holdings(edu.process.pid, before)
    assert "Traceback" not in edu.log()


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (("reset", "eduard"), "no device 'eduard' is served here; there are: edu"),
        (("reset", 7), "a device has a name, not 7"),
        (("drain", []), "a device has a name, not []"),
        (("log-level", "all"), "no log level 'all'; there are: debug, info, warning, error"),
        (("log-level", ["info"]), "no log level ['info']; there are: debug, info, warning, error"),
    ],
)
def test_what_is_refused(
    edu: RunningServer, control: Path, request_: tuple[str, object], answer: str
) -> None:
    with pytest.raises(BridgeError, match=re.escape(f"says: {answer}")):
        ask(control, *request_)
    assert "Traceback" not in edu.log()


def test_requests_in_one_piece_or_in_many_are_answered_in_order(
    control: Path, edu: RunningServer
) -> None:
    both = request(7, "status") + request(8, "no such")
    for pieces in ([both], [both[:1], both[1:]], [bytes([byte]) for byte in both]):
        first, second = converse(control, *pieces)
        assert (first[:3], first[3]["pid"]) == ([1, 7, None], edu.process.pid)
        assert second[:2] == [1, 8]
        assert second[2].startswith("there is no method 'no such'; there are: status, reset, ")


def test_wrong_parameters(control: Path, edu: RunningServer) -> None:
    ((_, number, error, result),) = converse(control, request(1, "status", "more"))
    assert (number, result) == (1, None)
    assert error == "status takes other parameters: too many positional arguments"
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


def test_one_who_speaks_http_there(tmp_path: Path, control: Path) -> None:
    """The socket of the metrics, by mistake: the H of HTTP is a number in MessagePack."""
    path, metrics = tmp_path / "edu.sock", tmp_path / "metrics"
    with server(path, "--socket-path", str(path), "--metrics", str(metrics)):
        assert main(["status", "--control", str(metrics)]) == 1
        with pytest.raises(BridgeError, match="is no bridge's control socket"):
            ask(metrics, "status")
    assert not control.exists()


def test_a_recording_that_may_yet_be_keeps_its_file(
    edu: RunningServer, control: Path, tmp_path: Path
) -> None:
    """A bridge that is stopped does later what it was asked."""
    trace = tmp_path / "late.trace"
    with mock.patch("vfio_user_bridge.management.control._PATIENCE", 0.2):
        edu.process.send_signal(signal.SIGSTOP)
        await_state(edu.process.pid, "T")
        assert tell(control, "record", str(trace)) == 1
    edu.process.send_signal(signal.SIGCONT)
    edu.told("edu: recording")
    assert tell(control, "stop-recording") == 0
    assert trace.stat().st_size > 0


def test_somebody_else_there(edu: RunningServer) -> None:
    """The device's socket, by mistake."""
    with pytest.raises(BridgeError, match="is no bridge's control socket"):
        ask(edu.path, "status")
