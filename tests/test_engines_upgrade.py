# SPDX-License-Identifier: BSD-3-Clause
"""A bridge is replaced under its client, or killed, whichever engine serves it."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from integration.replace import kill, pid, upgrade
from vfio_user_bridge.counters import no_rows
from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.handover.document import of_port
from vfio_user_bridge.handover.inherited import Left
from vfio_user_bridge.handover.resume import resume
from vfio_user_bridge.listener import Listener
from vfio_user_bridge.management.control import ask
from vfio_user_bridge.models.edu import BUFFER, DMA_RUN, DMA_TO_MEMORY, Register
from vfio_user_bridge.port import Port

from . import client as c
from .client import Client
from .descriptors import eventfds, memory_files
from .edu_driver import COMMAND, MASTER
from .engines import LIBRARY, NATIVE, need
from .fake_device import FakeDevice
from .running_server import SERVE, RunningServer, server
from .wire import dma_map, dma_unmap, message, region, set_irqs, u16, u32, u64

PAGE = 4096
TIMES = 2
SOON = 0.2  # seconds
BAR0, CONFIG = 0, 7
INTX, MSI = 0, 1
SET, OFF, UNMASK, UNMASK_BY = 0x24, 0x21, 0x11, 0x14
TEXT = b"in the guest's memory"
SUPERVISED = [*SERVE[:-2], "supervise", *SERVE[-2:]]

Event = Callable[[Path], None]
Way = tuple[str, Event]
#: of the native engine that is killed there are tests enough
WAYS: list[Way] = [(NATIVE, upgrade), (LIBRARY, upgrade), (LIBRARY, kill)]


@pytest.fixture(params=WAYS, ids=lambda way: f"{way[0]}-{way[1].__name__}")
def way(request: pytest.FixtureRequest) -> Way:
    way: Way = request.param
    need(way[0])
    return way


@pytest.fixture
def engine(way: Way) -> str:
    return way[0]


@pytest.fixture
def replace(way: Way) -> Event:
    return way[1]


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "control"


@pytest.fixture
def bridge(engine: str, control: Path, tmp_path: Path) -> Iterator[RunningServer]:
    path, metrics = tmp_path / "socket", tmp_path / "metrics"
    options = ("--control", str(control), "--metrics", str(metrics), "--engine", engine)
    with server(path, "--socket-path", str(path), *options, command=SUPERVISED) as running:
        yield running
        running.stop()
        assert "Traceback" not in running.log()


@pytest.fixture
def client(bridge: RunningServer) -> Iterator[Client]:
    with bridge.client() as client:
        client.ask(c.REGION_WRITE, region(COMMAND, CONFIG, u16(MASTER)))
        yield client


def put(client: Client, register: int, data: bytes) -> None:
    client.ask(c.REGION_WRITE, region(register, BAR0, data))


def transfer(client: Client, source: int, destination: int, command: int) -> None:
    put(client, Register.DMA_SOURCE, u64(source))
    put(client, Register.DMA_DESTINATION, u64(destination))
    put(client, Register.DMA_COUNT, u64(len(TEXT)))
    put(client, Register.DMA_COMMAND, u64(command))


def heard(fd: int) -> int:
    assert select.select([fd], [], [], 5)[0], "not a word"
    return os.eventfd_read(fd)


def silent(fd: int) -> bool:
    return not select.select([fd], [], [], 0.05)[0]


def test_its_maps_are_there(client: Client, control: Path, replace: Event) -> None:
    with memory_files(2, 2 * PAGE) as files:
        first, second = files
        os.pwrite(first, TEXT, PAGE)
        client.ask(c.DMA_MAP, dma_map(16 * PAGE, PAGE, offset=PAGE), [first])
        client.ask(c.DMA_MAP, dma_map(32 * PAGE, PAGE))
        client.ask(c.DMA_MAP, dma_map(48 * PAGE, PAGE), [second])
        client.ask(c.DMA_UNMAP, dma_unmap(48 * PAGE, PAGE))
        for _ in range(TIMES):
            replace(control)
            assert client.call(c.DMA_MAP, dma_map(16 * PAGE, 2 * PAGE), [second]).error
            transfer(client, 16 * PAGE, BUFFER, DMA_RUN)
            client.ask(c.DMA_MAP, dma_map(48 * PAGE, PAGE), [second])
            transfer(client, BUFFER, 48 * PAGE, DMA_RUN | DMA_TO_MEMORY)
            client.ask(c.DMA_UNMAP, dma_unmap(48 * PAGE, PAGE))
            assert os.pread(second, len(TEXT), 0) == TEXT
            os.pwrite(second, bytes(len(TEXT)), 0)
        client.ask(c.DMA_UNMAP, dma_unmap(32 * PAGE, PAGE))
        client.ask(c.DMA_UNMAP, dma_unmap(16 * PAGE, PAGE))
        (device,) = ask(control, "status")["devices"]
        assert (device["maps"], device["clients"]) == (0, 1)


def test_its_interrupts_are_heard(client: Client, control: Path, replace: Event) -> None:
    with eventfds(2) as theirs:
        client.ask(c.SET_IRQS, set_irqs(SET, MSI, 0, 1), theirs[:1])
        replace(control)
        put(client, Register.IRQ_RAISE, u32(1))
        assert heard(theirs[0]) == 1
        client.ask(c.SET_IRQS, set_irqs(SET, MSI, 0, 1), theirs[1:])
        replace(control)
        put(client, Register.IRQ_RAISE, u32(1))
        assert heard(theirs[1]) == 1
        client.ask(c.SET_IRQS, set_irqs(SET, MSI, 0, 1))  # without one
        replace(control)
        put(client, Register.IRQ_RAISE, u32(1))
        client.ask(c.SET_IRQS, set_irqs(OFF, MSI, 0, 0))
        put(client, Register.IRQ_RAISE, u32(1))
        assert silent(theirs[0])
        assert silent(theirs[1])


def test_a_line_is_masked_as_it_was(client: Client, control: Path, replace: Event) -> None:
    with eventfds(2) as theirs:
        signalled, unmask = theirs
        client.ask(c.SET_IRQS, set_irqs(SET, INTX, 0, 1), [signalled])
        put(client, Register.IRQ_RAISE, u32(1))
        assert heard(signalled) == 1
        replace(control)
        assert silent(signalled)
        client.ask(c.SET_IRQS, set_irqs(UNMASK, INTX, 0, 1))
        assert heard(signalled) == 1
        client.ask(c.SET_IRQS, set_irqs(UNMASK_BY, INTX, 0, 1), [unmask])
        replace(control)
        assert heard(signalled) == 1  # once too often: see models/interrupts.py
        os.eventfd_write(unmask, 1)
        assert heard(signalled) == 1


def test_one_that_says_nothing_yet_may_speak_then(
    bridge: RunningServer, control: Path, replace: Event
) -> None:
    with closing(bridge.connect()) as client:
        replace(control)
        client.negotiate()
        client.ask(c.RESET)


def test_a_client_that_has_gone_is_gone(
    bridge: RunningServer, control: Path, replace: Event
) -> None:
    with bridge.client() as client, memory_files(1) as files:
        client.ask(c.DMA_MAP, dma_map(0, PAGE), files)
        replace(control)
    with bridge.client() as client:
        client.ask(c.DMA_MAP, dma_map(0, PAGE))
        (device,) = ask(control, "status")["devices"]
        assert (device["maps"], device["clients"]) == (1, 2)


@pytest.mark.parametrize("way", WAYS[:2], indirect=True)
def test_a_successor_that_fails_late_harms_nothing(
    client: Client, control: Path, tmp_path: Path
) -> None:
    """It has all that is its predecessor's when it finds that a package of its own is missing."""
    (tmp_path / "prometheus_client.py").write_text("raise ImportError")
    with eventfds(1) as theirs:
        client.ask(c.SET_IRQS, set_irqs(SET, MSI, 0, 1), theirs)
        refused(control, "prometheus-client", PYTHONPATH=str(tmp_path))
        put(client, Register.IRQ_RAISE, u32(1))
        assert heard(theirs[0]) == 1
        upgrade(control)
        put(client, Register.IRQ_RAISE, u32(1))
        assert heard(theirs[0]) == 1


def refused(control: Path, why: str, **environment: str) -> None:
    """An upgrade is, in one line that tells *why*."""
    before = pid(control)
    done = subprocess.run(
        (sys.executable, "-m", "vfio_user_bridge", "upgrade", "--control", str(control)),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    line = done.stderr
    assert why in line
    assert pid(control) == before


@pytest.mark.parametrize("way", WAYS[2:], indirect=True)
def test_a_twin_socket_is_not_handed_over(bridge: RunningServer, control: Path) -> None:
    """The library has its other end, and doesn't tell which descriptor that is."""
    with closing(bridge.connect()) as client:
        proposal = {"max_msg_fds": 1, "twin_socket": {"supported": True}}
        reply = client.call(c.VERSION, u16(0, 0) + c.version_data(proposal))
        (twin,) = reply.fds
        refused(control, "twin socket")
        assert not select.select([twin], [], [], 0)[0], "its end is closed"
        os.close(twin)
        client.ask(c.RESET)


@pytest.mark.parametrize("way", WAYS[2:], indirect=True)
def test_who_is_in_the_middle_of_a_message_is_put_out(
    bridge: RunningServer, client: Client, control: Path
) -> None:
    """The library has its header, and waits for the rest."""
    with memory_files(1) as files:
        client.ask(c.DMA_MAP, dma_map(0, PAGE), files)
        client.socket.sendall(message(c.REGION_READ, region(0, BAR0, 4))[:16])
        client.wait_until_taken()
        kill(control)
        client.wait_until_hung_up()
    with bridge.client() as client:
        client.ask(c.DMA_MAP, dma_map(0, PAGE))
    assert "put out: its bridge was killed over a message that is lost with it" in bridge.log()


def test_an_engine_is_a_clients_for_good(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening, closing(FakeDevice()) as device:
        listening.bind(str(tmp_path / "socket"))
        port = Port(device, Listener(listening))
        document = {**of_port(port, lambda name, _fd: name), "client": "it", "engine": NATIVE}
        left = Left(document, [], no_rows(), None, lambda _name: os.dup(listening.fileno()))
        with pytest.raises(BridgeError, match=f"served by --engine {NATIVE}, which it keeps"):
            resume(port, left, LIBRARY)
