# SPDX-License-Identifier: BSD-3-Clause
"""A bridge is killed at a known place, and the next one does what can be done."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from vfio_user_bridge.handover.document import pack
from vfio_user_bridge.handover.journal import Journal
from vfio_user_bridge.management.control import ask
from vfio_user_bridge.messages import DmaMap
from vfio_user_bridge.trace.reader import Trace
from vfio_user_bridge.trace.records import Read

from . import client as c
from .client import Client
from .descriptors import eventfds, memory_files
from .processes import await_state
from .replaceable_server import SUPERVISED, ReplaceableServer, replaceable
from .running_server import PATIENCE, SERVE, server
from .visit import BAR0, CONFIG, DMA_COUNT, EVENTFD, IOVA, MSI, NONE, PAGE, TRIGGER
from .wire import dma_map, dma_unmap, region, set_irqs, u32, u64

INTERRUPT_LINE = 0x3C
#: a policy for the device, and one for another
FIT = '[[rule]]\nregion = "bar0"\noffset = 0\naction = "allow"\n'
UNFIT = FIT.replace("bar0", "bar5")
MEMFD = "/memfd:vfio-user-bridge"


def journal(process: int) -> Journal:
    """The one that *process* has."""
    for link in Path(f"/proc/{process}/fd").iterdir():
        if str(link.readlink()).startswith(MEMFD):
            return Journal(os.open(link, os.O_RDWR))
    raise AssertionError("it has none")


class Killing:
    """A bridge's client, and its bridge killed over what that asks."""

    def __init__(self, bridge: ReplaceableServer, client: Client) -> None:
        self.bridge = bridge
        self.client = client

    @contextlib.contextmanager
    def nobody(self) -> Iterator[Journal]:
        """Meanwhile the bridge is dead; gives its journal."""
        if self.client.socket.fileno() >= 0:
            self.client.wait_until_taken()
        supervisor = self.bridge.running.process.pid
        os.kill(supervisor, signal.SIGSTOP)
        try:
            self.bridge.signal(signal.SIGKILL)
            await_state(self.bridge.pid, "Z")
            with contextlib.closing(journal(supervisor)) as left:
                yield left
        finally:
            os.kill(supervisor, signal.SIGCONT)
        self.bridge.await_another()

    def over(
        self, command: int, payload: bytes, fds: Sequence[int] = (), *, times: int = 1
    ) -> c.Reply:
        """It has begun with this request when it is killed, for the so-manyth time."""
        with self.nobody() as left:
            left.begin(0)
            for _ in range(times - 1):
                left.again()
            number = self.client.send(command, payload, list(fds))
        reply = self.client.receive()
        assert (reply.number, reply.command) == (number, command)
        return reply


@contextlib.contextmanager
def a_client(folder: Path) -> Iterator[Killing]:
    with replaceable(folder, command=SUPERVISED) as bridge:
        killing = Killing(bridge, bridge.running.connect())
        killing.client.negotiate()
        yield killing
        killing.client.close()


@pytest.fixture(scope="module")
def killing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killing]:
    with a_client(tmp_path_factory.mktemp("crash")) as killing:
        yield killing


@pytest.fixture
def another(tmp_path: Path) -> Iterator[Killing]:
    """That a test may change the client of."""
    with a_client(tmp_path) as killing:
        yield killing


# ---- Over which request ---------------------------------------------------------------------

COUNT = region(DMA_COUNT, BAR0, 8)
LINE = region(INTERRUPT_LINE, CONFIG, 1)
OFF = set_irqs(NONE | TRIGGER, MSI, 0, 0)


@pytest.mark.parametrize(
    ("command", "payload", "error"),
    [
        (c.REGION_READ, COUNT, errno.EIO),
        (c.REGION_WRITE, region(DMA_COUNT, BAR0, u64(7)), errno.EIO),
        (c.REGION_WRITE_MULTI, u64(1) + region(DMA_COUNT, BAR0, u64(7)), errno.EIO),
        (c.REGION_READ, LINE, 0),
        (c.REGION_READ, b"", errno.EINVAL),
        (c.REGION_WRITE, region(INTERRUPT_LINE, CONFIG, b"\x07"), 0),
        (c.DMA_UNMAP, dma_unmap(IOVA, PAGE), 0),
        (c.SET_IRQS, OFF, 0),
        (c.SET_IRQS, b"", errno.EINVAL),
        (c.GET_INFO, u32(16, 0, 0, 0), 0),
        (c.FEATURE, u32(8, 1 << 16), errno.ENOTTY),
        (c.FEATURE, u32(8, 1 << 17), errno.EIO),
        (c.FEATURE, b"", errno.EINVAL),
        (c.RESET, b"", 0),
        (c.DMA_READ, b"", errno.EIO),
        (99, b"", errno.EIO),
    ],
)
def test_it_is_answered_once(killing: Killing, command: int, payload: bytes, error: int) -> None:
    client = killing.client
    client.ask(c.REGION_WRITE, region(DMA_COUNT, BAR0, u64(5)))
    assert killing.over(command, payload).error == error
    assert client.ask(c.REGION_READ, COUNT)[16:] == u64(0 if command == c.RESET else 5)


@pytest.mark.parametrize(("times", "error"), [(1, 0), (2, errno.EIO)])
def test_killed_over_it_twice_it_is_an_error(killing: Killing, times: int, error: int) -> None:
    assert killing.over(c.REGION_READ, LINE, times=times).error == error
    assert killing.over(c.REGION_READ, LINE).error == 0, "that is another one"


@pytest.mark.parametrize("done", [False, True])
def test_a_map_is_made(killing: Killing, done: bool) -> None:
    with memory_files(1) as files:
        entry = dma_map(IOVA, PAGE)
        if done:
            killing.client.ask(c.DMA_MAP, entry, files)
        assert killing.over(c.DMA_MAP, entry, files).error == 0
        assert killing.bridge.status()["maps"] == 1
        killing.client.ask(c.DMA_UNMAP, dma_unmap(IOVA, PAGE))
        assert killing.bridge.status()["maps"] == 0


def test_an_interrupt_goes_on(killing: Killing) -> None:
    with eventfds(1) as (event,):
        on = set_irqs(EVENTFD | TRIGGER, MSI, 0, 1)
        assert killing.over(c.SET_IRQS, on, [event]).error == 0
        with killing.nobody():
            pass
        killing.client.ask(c.REGION_WRITE, region(0x60, BAR0, u32(1)))
        assert os.eventfd_read(event) == 1
        killing.client.ask(c.SET_IRQS, OFF)


# ---- Who isn't there any more ---------------------------------------------------------------


def test_a_client_that_went_meanwhile(another: Killing) -> None:
    bridge = another.bridge
    with contextlib.closing(bridge.running.connect()) as stranger:
        stranger.wait_until_hung_up()
    another.client.ask(c.REGION_WRITE, region(DMA_COUNT, BAR0, u64(5)))
    with memory_files(1) as files:
        another.client.ask(c.DMA_MAP, dma_map(IOVA, PAGE), files)
    with another.nobody():
        another.client.close()
        another.client = bridge.running.connect()  # and waits
    client = another.client
    client.negotiate()
    assert client.ask(c.REGION_READ, COUNT)[16:] == u64(0)
    assert bridge.status()["maps"] == 0


def test_killed_while_the_device_is_put_back(another: Killing) -> None:
    """It has written down that the client is gone, and not yet that its maps are."""
    another.client.close()
    another.bridge.await_no_client()
    with another.nobody() as left:
        left.add_map(DmaMap(3, 0, IOVA, PAGE), 0)
        left.place(b"a reply", 100)
        left.begin(100)
        another.client = another.bridge.running.connect()
    another.client.negotiate()
    with another.nobody():
        pass
    assert another.client.refused(c.REGION_READ, region(0, BAR0, 1 << 24)) == errno.EINVAL
    assert another.bridge.status()["maps"] == 0


def test_what_is_around_the_device_goes_on_without_a_client(tmp_path: Path) -> None:
    """Its recording, from before there was any client, and what its policy counts."""
    trace, policy = tmp_path / "trace", tmp_path / "policy"
    policy.write_text(FIT.replace("allow", "deny"))
    options = ("--record", str(trace), "--policy", str(policy))
    with replaceable(tmp_path, *options, command=SUPERVISED) as bridge:
        for count in range(3):
            for _ in range(2):
                bridge.kill()
            assert bridge.status()["recording"]
            (rule,) = bridge.status()["rules"]
            assert rule["hits"] == count
            with bridge.client() as client:
                client.ask(c.REGION_READ, region(0, BAR0, 4))
            bridge.await_no_client()
        policy.write_text(FIT.replace("allow", "log"))
        bridge.kill()
        (rule,) = bridge.status()["rules"]
        assert rule["hits"] == 0
        assert "its policy has changed" in bridge.log()
        ask(bridge.control, "stop-recording")
    with Trace(trace) as found:
        assert [type(record) for record in found].count(Read) == 3


# ---- What makes no sense --------------------------------------------------------------------


def write(document: bytes) -> Callable[[Journal], None]:
    def change(made: Journal) -> None:
        made.document = document

    return change


def newer(made: Journal) -> None:
    os.pwrite(made.fd, u64(2), 0)


#: a document that could be gone on with
NOBODY = {
    "name": "edu",
    "draining": False,
    "deadline": None,
    "clients": 1,
    "since": 0.0,
    "past": {"rows": {}, "troubles": [0, None]},
    "device": None,
    "layers": {},
    "client": None,
    "state": None,
}
USELESS: dict[str, tuple[Callable[[Journal], None], int]] = {
    "nothing wrong": (write(pack(NOBODY)), 0),
    "another format": (newer, 1),
    "no MessagePack": (write(b"\xc1"), 1),
    "a number": (write(b"\x07"), 1),
    "another version": (write(pack(NOBODY).replace(b"version\x01", b"version\x02")), 1),
    "no fields": (write(pack({})), 1),
    "a name that is none": (write(pack(NOBODY | {"name": [["edu"]]})), 1),
    "another device": (write(pack(NOBODY | {"name": "0000:00:00.0"})), 1),
    "counts that are none": (write(pack(NOBODY | {"past": 5})), 1),
    "a device without registers": (write(pack(NOBODY | {"device": {"config": 1}})), 1),
    "a client that isn't there": (write(pack(NOBODY | {"client": "client-1-edu"})), 1),
    "a client that is no socket": (write(pack(NOBODY | {"client": "journal-edu"})), 1),
}


@pytest.mark.parametrize("what", USELESS)
def test_a_journal_of_no_use_is_told_in_a_line(what: str, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    names = "LISTEN_FDS=1 LISTEN_FDNAMES=kept-journal-edu"
    # systemd passes descriptors from 3 on, and the process's own number.
    shell = f'exec 3<&$0; LISTEN_PID=$$ {names} exec "$@"'
    change, lines = USELESS[what]
    options = ("--socket-path", str(path), "--record", str(tmp_path / "trace"))
    with contextlib.closing(Journal.create(16)) as left:
        change(left)
        command = ["bash", "-c", shell, str(left.fd), *SERVE]
        with server(path, *options, command=command, pass_fds=[left.fd]) as bridge:
            with bridge.client() as client:
                client.ask(c.RESET)
            told = [line for line in bridge.log().splitlines() if " ERROR " in line]
            assert len(told) == lines
            assert bridge.log().count("edu is no longer recorded: ") == lines
            assert "Traceback" not in bridge.log()
            bridge.stop()


def test_what_the_store_has_no_room_for(tmp_path: Path) -> None:
    """The client is lost, and the next one is welcome."""
    few = [each.replace("64", "4") if each.startswith("{") else each for each in SUPERVISED]
    with replaceable(tmp_path, command=few) as bridge, memory_files(4) as files:
        with bridge.client() as client:
            for number, file in enumerate(files):
                client.ask(c.DMA_MAP, dma_map(IOVA + number * PAGE, PAGE), [file])
            bridge.kill()
            client.wait_until_hung_up()
        with bridge.client() as client:
            client.ask(c.RESET)
        assert "no room for more descriptors" in bridge.log()
        assert "edu: can't go on where its bridge was killed" in bridge.log()
        assert "Traceback" not in bridge.log()


def test_one_that_cannot_start_leaves_the_client_to_the_next(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        where = free.getsockname()
    metrics = ("--metrics", f"{where[0]}:{where[1]}")
    with replaceable(tmp_path, *metrics, command=SUPERVISED) as bridge, bridge.client() as client:
        killing = Killing(bridge, client)
        client.ask(c.REGION_WRITE, region(DMA_COUNT, BAR0, u64(5)))
        with killing.nobody():
            taken = _taken(where)
            freed = threading.Thread(target=_until_told, args=(bridge, "can't start: ", taken))
            freed.start()
        freed.join()
        assert "can't start: " in bridge.log()
        assert client.ask(c.REGION_READ, COUNT)[16:] == u64(5)


@pytest.mark.parametrize("rule", ["it is no TOML", UNFIT], ids=["unreadable", "unfit"])
def test_a_policy_that_is_broken_at_that_moment(tmp_path: Path, rule: str) -> None:
    policy = tmp_path / "policy"
    policy.write_text(FIT)
    options = ("--policy", str(policy))
    with replaceable(tmp_path, *options, command=SUPERVISED) as bridge, bridge.client() as client:
        client.ask(c.REGION_WRITE, region(DMA_COUNT, BAR0, u64(5)))
        policy.write_text(rule)
        bridge.signal(signal.SIGKILL)
        bridge.running.told("ended with status 1; starting it again")
        policy.write_text(FIT)
        bridge.await_another()
        assert client.ask(c.REGION_READ, COUNT)[16:] == u64(5)


def _taken(where: tuple[str, int]) -> socket.socket:
    """Its other threads may end after the first, and with them what it listens on."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_server(where)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def _until_told(bridge: ReplaceableServer, line: str, taken: socket.socket) -> None:
    deadline = time.monotonic() + PATIENCE
    while line not in bridge.log() and time.monotonic() < deadline:
        time.sleep(0.01)
    taken.close()
