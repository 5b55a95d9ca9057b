# SPDX-License-Identifier: BSD-3-Clause
"""`upgrade`: when it can be done, who notices, and what is said when it can't."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest

from integration.hammer import Hammer
from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.handover import link as link_module
from vfio_user_bridge.handover.link import ToPredecessor, ToSuccessor
from vfio_user_bridge.management.control import ask

from . import client as c
from .client import QEMU_CAPABILITIES, Client, version_data
from .descriptors import memory_files
from .holdings import await_holdings, holdings
from .replaceable_server import ReplaceableServer, replaceable
from .running_server import PATIENCE
from .visit import BAR0, DMA_COUNT, IOVA, PAGE
from .wire import dma_map, message, region, u16, u64

UPGRADE = (sys.executable, "-m", "vfio_user_bridge", "upgrade", "--control", "control")
VERSION = message(c.VERSION, u16(0, 0) + version_data(QEMU_CAPABILITIES), number=7)


def write(client: Client, value: int) -> None:
    client.ask(c.REGION_WRITE, region(DMA_COUNT, BAR0, u64(value)))


def read(client: Client) -> int:
    return int.from_bytes(client.ask(c.REGION_READ, region(DMA_COUNT, BAR0, 8))[16:], "little")


# ---- However it was started -----------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [(), ("--confine", "all"), ("--confine", "off"), ("--user", "nobody")]
)
def test_with_these_options(public_folder: Path, options: tuple[str, ...]) -> None:
    if options[:1] == ("--user",):
        if os.geteuid():
            pytest.skip("only root can be another user")
        public_folder.chmod(0o777)
    with replaceable(public_folder, *options) as bridge:
        with bridge.client() as client:
            write(client, 5)
            confined = ask(bridge.control, "status")["confinement"]
            assert "has handed over to" in bridge.upgrade()
            assert read(client) == 5
            assert ask(bridge.control, "status")["confinement"] == confined
        bridge.upgrade()
        with bridge.client() as client:
            assert read(client) == 0
        bridge.stop()
        assert bridge.running.process.wait() == 0


@pytest.mark.parametrize("name", ["file", "@vfio-user-bridge-test-{}"])
def test_on_a_socket_that_was_passed_in(tmp_path: Path, name: str) -> None:
    address = str(tmp_path / name) if name == "file" else "\0" + name[1:].format(os.getpid())
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        listener.bind(address)
        listener.listen()
        fd = listener.fileno()
        bridge = stack.enter_context(replaceable(tmp_path, "--fd", str(fd), pass_fds=[fd]))

        def connect() -> Client:
            sock = socket.socket(socket.AF_UNIX)
            stack.callback(sock.close)
            sock.connect(address)
            client = Client(sock)
            client.negotiate()
            return client

        client = connect()
        write(client, 5)
        bridge.upgrade()
        assert read(client) == 5
        client.close()
        bridge.await_no_client()
        assert read(connect()) == 0
        bridge.stop()
        assert name != "file" or Path(address).exists()


# ---- Whatever goes on -----------------------------------------------------------------------


def test_who_comes_meanwhile_waits(tmp_path: Path) -> None:
    """One after the other, all the time."""
    over = threading.Event()

    def come(bridge: ReplaceableServer) -> int:
        served = 0
        while not over.is_set() or not served:
            with bridge.client() as client:
                assert read(client) == 0
            served += 1
        return served

    with replaceable(tmp_path) as bridge, ThreadPoolExecutor(1) as pool:
        coming = pool.submit(come, bridge)
        try:
            bridge.upgrade()
        finally:
            over.set()
        served = coming.result()
        bridge.await_no_client()
        assert bridge.status()["clients"] == served


def test_who_works_meanwhile_cannot_tell(tmp_path: Path) -> None:
    with (
        replaceable(tmp_path) as bridge,
        ThreadPoolExecutor(1) as pool,
        closing(bridge.running.connect()) as client,
    ):
        hammer = Hammer(client, random.Random(1), lambda: 0)
        upgrading = pool.submit(lambda: [bridge.upgrade() for _ in range(2)])
        while not upgrading.done():
            hammer.strike()
        upgrading.result()
        hammer.strike()
        hammer.end()
        assert not hammer.errors


@pytest.mark.parametrize("sent", [0, 20, len(VERSION)], ids=["nothing", "a part", "all"])
def test_who_has_yet_to_say_something(tmp_path: Path, sent: int) -> None:
    """A message that is half there is waited for, if not for long."""
    with (
        replaceable(tmp_path) as bridge,
        ThreadPoolExecutor(1) as pool,
        closing(bridge.running.connect()) as client,
    ):
        client.socket.sendall(VERSION[:sent])
        upgrading = pool.submit(bridge.upgrade)
        wait([upgrading], PATIENCE if sent in (0, len(VERSION)) else 1.0)
        client.socket.sendall(VERSION[sent:])
        assert client.receive().number == 7
        upgrading.result()
        write(client, 5)
        assert read(client) == 5


# ---- Not so ---------------------------------------------------------------------------------


def test_a_policy_that_is_wrong_by_now(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    policy.write_text('[[rule]]\nregion = "bar0"\noffset = 0\naction = "deny"\n')
    with replaceable(tmp_path, "--policy", str(policy)) as bridge, bridge.client() as client:
        write(client, 5)
        before = holdings(bridge.pid)
        policy.write_text("nonsense")
        said = bridge.upgrade(status=1).splitlines()
        assert len(said) == 2, said
        assert said[0].startswith(f"vfio-user-bridge: {policy}")
        assert "the other bridge is gone" in said[1]
        assert read(client) == 5
        await_holdings(bridge.pid, before)


def test_fewer_descriptors_than_the_old_one_has(tmp_path: Path) -> None:
    """The new one says so, rather than wait for the rest while guests wait."""
    few = (48, 48)
    with replaceable(tmp_path) as bridge, bridge.client() as client, memory_files(48) as files:
        for number, file in enumerate(files):
            client.ask(c.DMA_MAP, dma_map(IOVA + number * PAGE, PAGE), [file])
        done = subprocess.run(
            UPGRADE,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, few),
        )
        assert done.returncode == 1
        assert "is ulimit -n too low?" in bridge.log()
        assert read(client) == 0


def say(sock: socket.socket, message: Any) -> None:
    data = msgpack.packb(message)
    sock.sendall(len(data).to_bytes(8, "little") + data)


def nothing(_sock: socket.socket) -> None:
    pass


def another_version(sock: socket.socket) -> None:
    say(sock, {"document": 2, "bridge": "9", "pid": os.getpid()})


def nonsense(sock: socket.socket) -> None:
    sock.sendall(b"\xff" * 64)


def no_map(sock: socket.socket) -> None:
    say(sock, 7)


def no_process(sock: socket.socket) -> None:
    say(sock, {"document": 1, "bridge": "9"})


def gone_once_it_said_hello(sock: socket.socket) -> None:
    say(sock, {"document": 1, "bridge": "9", "pid": os.getpid()})


def gone_once_it_has_all(sock: socket.socket) -> None:
    _document, files = ToPredecessor(sock).learn()
    for fd in files.values():
        os.close(fd)


def refused(sock: socket.socket) -> None:
    gone_once_it_has_all(sock)
    say(sock, {"refused": "the stars are wrong"})


@pytest.mark.parametrize(
    ("successor", "why"),
    [
        (nothing, "the other bridge is gone"),
        (another_version, "version 9 knows documents of version 2, and this bridge writes 1"),
        (nonsense, "the other bridge makes no sense"),
        (no_map, "the other bridge makes no sense"),
        (no_process, "the other bridge makes no sense"),
        (gone_once_it_said_hello, "the other bridge is gone"),
        (gone_once_it_has_all, "the other bridge is gone"),
        (refused, "the stars are wrong"),
    ],
)
def test_who_can_not_succeed(
    tmp_path: Path, successor: Callable[[socket.socket], None], why: str
) -> None:
    with replaceable(tmp_path) as bridge, bridge.client() as client:
        write(client, 5)
        before = holdings(bridge.pid)
        ours, theirs = socket.socketpair()

        def act() -> None:
            with ours, suppress(ConnectionError):
                successor(ours)
                ours.shutdown(socket.SHUT_WR)
                while ours.recv(4096):
                    pass

        with ThreadPoolExecutor(1) as pool:
            acting = pool.submit(act)
            with pytest.raises(BridgeError, match=why):
                ask(bridge.control, "hand-over", files=[theirs.detach()], hand=True)
            acting.result()
        assert read(client) == 5
        await_holdings(bridge.pid, before)
        (told,) = [line for line in bridge.log().splitlines() if "not replaced" in line]
        assert why in told
        assert "Traceback" not in bridge.log()


def test_one_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "PATIENCE", 0.01)
    ours, theirs = socket.socketpair()
    with theirs:
        link = ToSuccessor(ours)
        with pytest.raises(BridgeError, match="has said nothing for"):
            link.greeted()
        link.go_on()


def test_one_that_stands_still_before_it_has_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guests wait no longer for it than for one that stands still afterwards."""
    monkeypatch.setattr(link_module, "FROZEN", 0.01)
    ours, theirs = socket.socketpair()
    begun = time.monotonic()
    with theirs:
        link = ToSuccessor(ours)
        with pytest.raises(BridgeError, match="doesn't listen"):
            link.tell({"devices": bytes(8 << 20)}, {})
        link.go_on()
    assert time.monotonic() - begun < link_module.PATIENCE


def test_a_predecessor_that_was_killed_has_no_successor() -> None:
    """Its manager starts another, unless it was told who that is."""
    ours, theirs = socket.socketpair()
    successor = ToPredecessor(ours)
    theirs.close()
    with pytest.raises(BridgeError, match=r"gone|doesn't listen"):
        successor.take_over()
    successor.close()


def test_a_predecessor_that_is_slow_to_end_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once it has handed over there is nobody else."""
    monkeypatch.setattr(link_module, "PATIENCE", 0.01)
    ours, theirs = socket.socketpair()
    with ThreadPoolExecutor(1) as pool, theirs:
        say(theirs, {"gone": True})
        taking = pool.submit(ToPredecessor(ours).take_over)
        deadline = time.monotonic() + PATIENCE
        while "has handed over, and doesn't end" not in caplog.text:
            assert time.monotonic() < deadline
            assert not taking.done()
            time.sleep(0.001)
        theirs.close()
        taking.result(PATIENCE)


def test_two_at_once(tmp_path: Path) -> None:
    """Both succeed, one after the other, or one of them says why it doesn't."""
    with replaceable(tmp_path) as bridge, bridge.client() as client:
        write(client, 5)
        first = bridge.pid
        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(subprocess.run, UPGRADE, cwd=tmp_path) for _ in range(2)]
            assert 0 in [each.result().returncode for each in both]
        bridge.pid = ask(bridge.control, "status")["pid"]
        assert bridge.pid != first
        assert read(client) == 5
        assert bridge.status()["clients"] == 1
        bridge.signal(signal.SIGTERM)
        bridge.await_end()
