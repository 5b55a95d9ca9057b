# SPDX-License-Identifier: BSD-3-Clause
"""The server as a process: one client at a time, whatever clients do, until it is told to stop."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import client as c
from .descriptors import eventfds, memory_files
from .holdings import await_holdings, await_no_client, holdings
from .running_server import PATIENCE, SERVE, RunningServer, server
from .wire import dma_map, message, region, set_irqs, u16, u32

BAR0, CONFIG = 0, 7
LIVENESS, RAISE = 4, 0x60
EVENTFD, UNMASK, TRIGGER = 4, 16, 32  # VFIO_IRQ_SET_
EDU_ID = b"\x34\x12\xe8\x11"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edu.sock"


@pytest.fixture
def edu(path: Path) -> Iterator[RunningServer]:
    with server(path, "--socket-path", str(path)) as edu:
        yield edu


def identify(client: c.Client) -> bytes:
    """The device's vendor and device ID."""
    return client.ask(c.REGION_READ, region(0, CONFIG, 4))[16:]


# ---- Start and end --------------------------------------------------------------------------


def test_the_ready_line_is_all_that_it_says(path: Path) -> None:
    begun = time.monotonic()
    with server(path, "--socket-path", str(path)) as edu:
        took = time.monotonic() - begun
        with edu.client() as client:
            assert identify(client) == EDU_ID
        assert edu.stop() == ""
        assert edu.ready_line == f"edu ready on {path}\n"
    print(f"ready after {took * 1000:.0f} ms")
    assert took < PATIENCE


def connect_soon(path: Path) -> c.Client:
    """Connect to a server that has yet to listen."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return c.connect(path, PATIENCE)
        except (FileNotFoundError, ConnectionRefusedError):
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("stdout", [">&-", ">/dev/full", "| true"])
def test_nobody_need_read_the_ready_line(path: Path, stdout: str) -> None:
    command = shlex.join([*SERVE, "--socket-path", str(path)])
    shell = ["bash", "-c", f"set -o pipefail; {command} {stdout}"]
    with subprocess.Popen(shell, stderr=subprocess.PIPE, text=True, process_group=0) as process:
        with contextlib.closing(connect_soon(path)) as client:
            client.negotiate()
            assert identify(client) == EDU_ID
        os.killpg(process.pid, signal.SIGTERM)
        assert process.stderr
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(edu: RunningServer, number: int) -> None:
    with edu.client() as client, memory_files(1) as files:
        client.ask(c.DMA_MAP, dma_map(0, 4096), files)
        edu.stop(number)
        client.wait_until_hung_up()
    assert not edu.path.exists()
    assert "client gone" in edu.log()
    assert "Traceback" not in edu.log()


def test_a_signal_ends_it_though_clients_do_not_behave(edu: RunningServer) -> None:
    with edu.client() as deaf, contextlib.closing(edu.connect()):
        deaf.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # until it is stuck with its replies
            while True:
                deaf.socket.send(message(c.REGION_READ, region(0, BAR0, 1 << 16)))
        edu.stop()
    assert not edu.path.exists()


def test_the_socket_has_the_mode_that_was_asked_for(path: Path) -> None:
    with server(path, "--socket-path", str(path), "--socket-mode", "0620"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o620


def test_the_socket_of_a_server_that_was_killed_is_replaced(edu: RunningServer) -> None:
    edu.process.kill()
    edu.process.wait()
    assert edu.path.is_socket()
    with server(edu.path, "--socket-path", str(edu.path)) as successor:
        with successor.client() as client:
            assert identify(client) == EDU_ID
        successor.stop()
    assert not edu.path.exists()


def test_a_live_socket_is_refused_in_one_line(edu: RunningServer) -> None:
    second = subprocess.run(
        [*SERVE, "--socket-path", str(edu.path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert second.returncode == 1
    assert second.stdout == ""
    assert second.stderr.endswith(
        f"another server is listening on {edu.path}: stop it or choose another\n"
    )
    with edu.client() as client:
        assert identify(client) == EDU_ID


# ---- Sockets that are passed in -------------------------------------------------------------


@pytest.fixture
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(path))
        sock.listen()
        yield sock


def test_a_descriptor_that_listens_is_served(listening: socket.socket, path: Path) -> None:
    fd = listening.fileno()
    with server(path, "--fd", str(fd), pass_fds=[fd]) as edu:
        assert edu.ready_line == f"edu ready on {path}\n"
        with edu.client() as client:
            assert identify(client) == EDU_ID
        edu.stop()
    assert path.is_socket()  # it is the caller's


# ---- What the process may have ---------------------------------------------------------------


def test_descriptors_run_out(edu: RunningServer) -> None:
    """The client whose file doesn't arrive is put out; when there is room again, all is well."""
    pid = edu.process.pid
    _soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    idle = holdings(pid)
    with edu.client() as client:
        identify(client)
    before = await_no_client(pid, idle)
    with edu.client() as client, memory_files(1) as files:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(before.descriptors) + 1, hard))
        client.send(c.DMA_MAP, dma_map(0, 4096), files)
        client.wait_until_hung_up()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
    await_holdings(pid, before)
    with edu.client() as client, memory_files(1) as files:
        client.ask(c.DMA_MAP, dma_map(0, 4096), files)
        assert "or than this process can have (ulimit -n)" in edu.log()


def test_eventfds_are_heard(edu: RunningServer) -> None:
    """Though what reads them, without ever waiting, is no common system call."""
    with edu.client() as client, eventfds(2) as (trigger, unmask):
        client.ask(c.SET_IRQS, set_irqs(EVENTFD | TRIGGER, 0, 0, 1), [trigger])
        client.ask(c.SET_IRQS, set_irqs(EVENTFD | UNMASK, 0, 0, 1), [unmask])
        client.ask(c.REGION_WRITE, region(RAISE, BAR0, u32(1)))
        for _ in range(3):  # INTx is asserted, so each unmask has it signalled again
            assert select.select([trigger], [], [], PATIENCE)[0]
            os.eventfd_read(trigger)
            os.eventfd_write(unmask, 1)


# ---- One client at a time -------------------------------------------------------------------


def test_a_second_client_is_refused_at_once_and_the_first_goes_on(edu: RunningServer) -> None:
    with edu.client() as first:
        for _ in range(3):
            with contextlib.closing(edu.connect()) as second:
                second.wait_until_hung_up()
            assert identify(first) == EDU_ID
    assert edu.log().count("it has a client already") == 3


def test_the_next_client_finds_a_device_that_was_reset(edu: RunningServer) -> None:
    for _ in range(20):
        with edu.client() as client:
            at_rest = client.ask(c.REGION_READ, region(LIVENESS, BAR0, 4))
            assert at_rest == region(LIVENESS, BAR0, u32(0))
            client.ask(c.REGION_WRITE, region(LIVENESS, BAR0, u32(1)))


def test_the_next_client_finds_what_was_kept(path: Path) -> None:
    with server(path, "--socket-path", str(path), "--on-disconnect", "keep") as edu:
        with edu.client() as client:
            client.ask(c.REGION_WRITE, region(LIVENESS, BAR0, u32(1)))
        with edu.client() as client:
            kept = client.ask(c.REGION_READ, region(LIVENESS, BAR0, 4))
            assert kept == region(LIVENESS, BAR0, u32(0xFFFFFFFE))


VICTIM = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sock.sendall(bytes.fromhex(sys.argv[2]))
print(len(sock.recv(16)), flush=True)
sys.stdin.read()
"""


def test_the_next_client_is_welcome_when_the_first_was_killed(edu: RunningServer) -> None:
    version = message(c.VERSION, u16(0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(edu.path), version.hex()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as victim:
        assert victim.stdout
        assert victim.stdout.readline() == "16\n"
        victim.kill()
        victim.wait()
    with edu.client() as client:
        assert identify(client) == EDU_ID
    assert "refused pid" not in edu.log()


@pytest.mark.parametrize(
    "last_words",
    [
        b"",
        b"half",
        message(c.DMA_MAP, dma_map(0, 4096))[:20],
        message(c.REGION_READ, region(0, BAR0, 1 << 16)) * 100,  # and reads no reply
        b"\xff" * 1000,
    ],
    ids=["nothing", "half a header", "half a map", "reads", "nonsense"],
)
@pytest.mark.parametrize("negotiated", [True, False])
def test_the_next_client_is_welcome_whatever_the_first_did(
    edu: RunningServer, negotiated: bool, last_words: bytes
) -> None:
    with contextlib.closing(edu.connect()) as first:
        if negotiated:
            first.negotiate()
        first.socket.sendall(last_words)
    with edu.client() as client, memory_files(1) as files:
        assert identify(client) == EDU_ID
        client.ask(c.DMA_MAP, dma_map(0, 4096), files)
        assert client.refused(c.DMA_MAP, dma_map(0, 4096), files) == errno.EEXIST
    assert "Traceback" not in edu.log()


def test_the_server_keeps_no_descriptor_of_clients_that_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "edu.sock"
    with server(path, "--socket-path", str(path), "--confine", "off") as edu:  # or root alone looks
        counts = _descriptors_after_clients(edu, 3)
    assert counts[0] == counts[1] == counts[2]


def _descriptors_after_clients(edu: RunningServer, clients: int) -> list[int]:
    folder = Path(f"/proc/{edu.process.pid}/fd")
    counts = []
    for _ in range(clients):
        with edu.client() as client, memory_files(5) as files:
            for number, file in enumerate(files):
                client.ask(c.DMA_MAP, dma_map(number * 4096, 4096), [file])
            client.send(c.DMA_MAP, dma_map(0, 4096), files)
        with edu.client() as client:  # by now the one before is cleaned up behind
            identify(client)
            counts.append(len(list(folder.iterdir())))
    return counts
