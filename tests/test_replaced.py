# SPDX-License-Identifier: BSD-3-Clause
"""A bridge is replaced under its client, by an upgrade and after SIGKILL: what stays as it was.

Each case is a generator: what it does before, what it sees after.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vfio_user_bridge.management.control import ask
from vfio_user_bridge.trace.reader import Trace
from vfio_user_bridge.trace.records import End, Read

from . import client as c
from .client import Client
from .descriptors import eventfds, memory_files
from .replaceable_server import SUPERVISED, ReplaceableServer, replaceable
from .running_server import SERVE
from .scrapes import Scrape
from .visit import (
    BAR0,
    BUFFER,
    CONFIG,
    DMA_COMMAND,
    DMA_COUNT,
    DMA_SOURCE,
    DMA_TARGET,
    ENABLE,
    EVENTFD,
    INTX,
    IOVA,
    MSI,
    NONE,
    PAGE,
    RUN,
    TO_MEMORY,
    TRIGGER,
    UNMASK,
)
from .wire import dma_map, dma_unmap, region, set_irqs

LIVENESS, IRQ_RAISE, IRQ_ACKNOWLEDGE = 0x04, 0x60, 0x64
INTERRUPT_LINE = 0x3C
DENIED = 0x2000
POLICY = """
[[rule]]
region = "bar0"
offset = 0x2000
action = "deny"
"""
ADDRESS = "metrics"
#: eventfds that must not be signalled are looked at for so long, in seconds
MOMENT = 0.05

Case = Generator[None]


class Scene:
    """A client and its bridge."""

    def __init__(self, client: Client, bridge: ReplaceableServer, folder: Path) -> None:
        self.client = client
        self.bridge = bridge
        self.folder = folder

    def read(self, index: int, offset: int, count: int = 4) -> int:
        data = self.client.ask(c.REGION_READ, region(offset, index, count))[16:]
        return int.from_bytes(data, "little")

    def write(self, index: int, offset: int, value: int, size: int = 4) -> None:
        data = value.to_bytes(size, "little")
        self.client.ask(c.REGION_WRITE, region(offset, index, data))

    def irqs(self, flags: int, kind: int, *events: int) -> None:
        self.client.ask(c.SET_IRQS, set_irqs(flags, kind, 0, len(events)), list(events))

    def copy(self, source: int, target: int, direction: int = 0) -> None:
        """A page, by DMA."""
        values = {DMA_SOURCE: source, DMA_TARGET: target, DMA_COUNT: PAGE}
        for register, value in (values | {DMA_COMMAND: RUN | direction}).items():
            self.write(BAR0, register, value, 8)


def fired(event: int, patience: float = 20.0) -> int:
    """How often; waits until it has, and not for ever."""
    return os.eventfd_read(event) if select.select([event], [], [], patience)[0] else 0


# ---- Cases ----------------------------------------------------------------------------------


def registers(it: Scene) -> Case:
    it.write(BAR0, LIVENESS, 0x12345678)
    it.write(CONFIG, INTERRUPT_LINE, 0x5A, 1)
    yield
    assert it.read(BAR0, LIVENESS) == 0xEDCBA987
    assert it.read(CONFIG, INTERRUPT_LINE, 1) == 0x5A


def dma_maps(it: Scene) -> Case:
    it.write(CONFIG, 4, ENABLE, 2)
    with memory_files(2, 2 * PAGE) as (ram, other):
        it.client.ask(c.DMA_MAP, dma_map(IOVA, PAGE), [ram])
        it.client.ask(c.DMA_MAP, dma_map(IOVA + PAGE, PAGE, offset=PAGE), [ram])
        os.pwrite(ram, text := os.urandom(PAGE), 0)
        yield
        it.copy(IOVA, BUFFER)
        it.copy(BUFFER, IOVA + PAGE, TO_MEMORY)
        assert os.pread(ram, PAGE, PAGE) == text
        assert it.client.refused(c.DMA_MAP, dma_map(IOVA, PAGE), [ram])
        it.client.ask(c.DMA_UNMAP, dma_unmap(IOVA, 2 * PAGE))
        it.client.ask(c.DMA_MAP, dma_map(IOVA, PAGE), [other])
        it.copy(BUFFER, IOVA, TO_MEMORY)
        assert os.pread(other, PAGE, 0) == text


def a_line_that_is_held_and_masked(it: Scene) -> Case:
    with eventfds(2) as (event, unmask):
        it.irqs(EVENTFD | TRIGGER, INTX, event)
        it.irqs(EVENTFD | UNMASK, INTX, unmask)
        it.write(BAR0, IRQ_RAISE, 1)
        assert fired(event) == 1
        yield
        while fired(event, MOMENT):
            pass  # one killed may have seen an unmasking, so it counts as done: see models
        os.eventfd_write(unmask, 1)
        assert fired(event) == 1
        it.write(BAR0, IRQ_ACKNOWLEDGE, 1)
        os.eventfd_write(unmask, 1)
        assert not fired(event, MOMENT)
        it.irqs(NONE | TRIGGER, INTX)


def a_message(it: Scene) -> Case:
    """Once there is no more INTx."""
    yield
    with eventfds(1) as (event,):
        it.irqs(EVENTFD | TRIGGER, MSI, event)
        it.write(BAR0, IRQ_RAISE, 1)
        assert fired(event) == 1


def what_is_counted(it: Scene) -> Case:
    assert it.client.refused(c.REGION_READ, region(0, BAR0, 1 << 24))
    before = it.bridge.status()
    yield
    after = it.bridge.status()
    assert after["clients"] == before["clients"] == 2
    assert after["client"]["pid"] == os.getpid()
    assert after["client"]["since"] == before["client"]["since"]
    assert after["refused"] >= before["refused"] == 1
    assert after["last_error"]
    for command, row in before["messages"].items():
        assert after["messages"][command]["count"] >= row["count"], command
    assert after["messages"]["VERSION"]["count"] == 1


def hits_of_a_policy(it: Scene) -> Case:
    def hits() -> int:
        (rule,) = it.bridge.status()["rules"]
        return int(rule["hits"])

    for _ in range(3):
        it.read(BAR0, DENIED)
    assert hits() == 3
    yield
    it.read(BAR0, DENIED)
    assert hits() == 4


def a_recording(it: Scene) -> Case:
    path = it.folder / "trace"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    ask(it.bridge.control, "record", files=[file], hand=True)
    it.read(BAR0, 0x3000)
    yield
    it.read(BAR0, 0x3004)
    ask(it.bridge.control, "stop-recording")
    with Trace(path) as trace:
        *records, end = trace
        assert not trace.truncated
    offsets = [record.offset for record in records if type(record) is Read]
    assert [offset for offset in offsets if offset >> 12 == 3] == [0x3000, 0x3004]
    assert type(end) is End


def that_no_client_is_let_in(it: Scene) -> Case:
    ask(it.bridge.control, "drain")
    yield
    assert it.bridge.status()["draining"]
    with ExitStack() as stack:
        stranger = it.bridge.running.connect()
        stack.callback(stranger.close)
        stranger.wait_until_hung_up()
    ask(it.bridge.control, "admit")


def metrics(it: Scene) -> Case:
    where = str(it.folder / ADDRESS)
    yield
    assert Scrape(where)("vfio_user_clients_total", device="edu") == 2


def the_log(it: Scene) -> Case:
    before = it.bridge.log()
    yield
    now = it.bridge.log()
    assert now.startswith(before)
    assert "edu: going on with pid" in now
    assert "Traceback" not in now


CASES: tuple[Callable[[Scene], Case], ...] = (
    *(registers, dma_maps, a_line_that_is_held_and_masked, a_message, what_is_counted),
    *(hits_of_a_policy, a_recording, that_no_client_is_let_in, metrics, the_log),
)


def upgraded(bridge: ReplaceableServer) -> None:
    assert "has handed over to" in bridge.upgrade()


WAYS: dict[str, tuple[list[str], Callable[[ReplaceableServer], None]]] = {
    "upgrade": (SERVE, upgraded),
    "upgrade under supervise": (SUPERVISED, upgraded),
    "SIGKILL": (SUPERVISED, ReplaceableServer.kill),
}

Begun = dict[Callable[[Scene], Case], Case]


@pytest.fixture(scope="module", params=WAYS)
def begun(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Begun]:
    """All cases, of one bridge that was replaced twice."""
    command, replace = WAYS[request.param]
    folder = tmp_path_factory.mktemp("replaced")
    (folder / "policy").write_text(POLICY)
    options = ("--policy", str(folder / "policy"), "--metrics", str(folder / ADDRESS))
    with replaceable(folder, *options, command=command) as bridge:
        with bridge.client():
            pass
        with bridge.client() as client:
            scene = Scene(client, bridge, folder)
            cases = {case: case(scene) for case in CASES}
            for case in cases.values():
                next(case)
            for _ in range(2):
                replace(bridge)
            yield cases
        bridge.stop()


@pytest.mark.parametrize("way", WAYS)
def test_its_folder_is_gone(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, replace = WAYS[way]
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    with replaceable(tmp_path, command=command) as bridge, bridge.client() as client:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "there").rmdir()
        for _ in range(2):
            replace(bridge)
        client.ask(c.RESET)
        bridge.stop()


@pytest.mark.parametrize("case", CASES)
def test_it_stays(begun: Begun, case: Callable[[Scene], Case]) -> None:
    with pytest.raises(StopIteration):
        next(begun[case])
