# SPDX-License-Identifier: BSD-3-Clause
"""The properties of the fuzz targets hold for all of their corpus, and defects break them.

Breeding new inputs takes atheris and time: `make fuzz`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.fuzz import CORPUS, TARGETS, leaks, record, target
from integration.fuzz.files import EVENTFD, RAM
from integration.fuzz.mutations import MOST_AGAIN, mutate
from integration.fuzz.pieces import LONGEST, MOST_FILES, Piece, pack, unpack
from integration.fuzz.tap import tap
from vfio_user_bridge.messages import DmaMap, IrqSet
from vfio_user_bridge.models.edu import BAR_SIZE, Edu
from vfio_user_bridge.protocol import refuse
from vfio_user_bridge.transport import Connection, Message

from . import client as c
from .descriptors import eventfds, memory_files
from .running_server import server
from .wire import dma_map, message, region, set_irqs, u32

INPUTS = [path for name in TARGETS for path in sorted((CORPUS / name).iterdir())]

MAP = Piece(message(c.DMA_MAP, dma_map(0, 4096)), (RAM,))
ENABLE_MSI = Piece(message(c.SET_IRQS, set_irqs(0x24, 1, 0, 1)), (EVENTFD,))
LIVENESS = 4
WRITE = Piece(message(c.REGION_WRITE, region(LIVENESS, 0, u32(1))))


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_corpus(path: Path) -> None:
    with target(path.parent.name) as run:
        run(path.read_bytes())


@given(
    st.lists(
        st.builds(
            Piece,
            st.binary(max_size=50),
            st.lists(st.integers(0, 255), max_size=MOST_FILES).map(tuple),
            st.booleans(),
        )
    )
)
def test_pieces(pieces: list[Piece]) -> None:
    assert unpack(pack(pieces)) == pieces


@given(st.binary(max_size=2 * LONGEST))
def test_any_bytes_are_pieces(data: bytes) -> None:
    pieces = unpack(data)
    assert all(len(piece.data) <= LONGEST for piece in pieces)


@given(st.integers(0, 2**32), st.binary(max_size=200))
def test_mutations_of_any_bytes(seed: int, data: bytes) -> None:
    once = mutate(data, seed)
    assert once == mutate(data, seed)
    assert abs(len(unpack(once)) - len(unpack(data))) <= MOST_AGAIN


def test_mutations_get_through() -> None:
    """What they make are messages that a session takes."""
    data = b""
    with target("session") as run:
        for seed in range(200):
            data = mutate(data, seed)
            run(data)
    assert len(unpack(data)) > 20


def test_tap(tmp_path: Path) -> None:
    bridge, tapped = tmp_path / "bridge", tmp_path / "tapped"
    with server(bridge, "--socket-path", str(bridge)), tap(tapped, bridge) as messages:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(tapped))
        client = c.Client(sock)
        client.negotiate()
        with memory_files(1) as (ram,), eventfds(1) as (event,):
            client.ask(c.DMA_MAP, dma_map(0, 4096), [ram])
            client.ask(c.SET_IRQS, set_irqs(0x24, 1, 0, 1), [event])
        assert client.ask(c.REGION_READ, region(0, 0, 4))[-4:] == u32(0x010000ED)
        client.close()
    _version, *others, _read = messages
    assert [(m.data[2:], m.files) for m in others] == [
        (m.data[2:], m.files) for m in (MAP, ENABLE_MSI)
    ]


def test_recorded_conversations() -> None:
    """They begin with what they need of QEMU's start, and no access is there twice."""
    version = Piece(message(c.VERSION))
    ask = Piece(message(c.GET_INFO))
    chapters = {
        "maps": [version, ask, MAP, WRITE, WRITE],
        "msi": [version, ask, ENABLE_MSI, WRITE, ENABLE_MSI],
    }
    assert dict(record.conversations(chapters)) == {
        "start": [version, ask],
        "maps": [version, MAP, WRITE],
        "msi": [version, ENABLE_MSI, WRITE, ENABLE_MSI],
    }


def test_protocol_notices_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack(payload: memoryview) -> IrqSet:
        return IrqSet(payload[0], 0, 0, 0)

    monkeypatch.setattr(IrqSet, "unpack", unpack)
    with target("protocol") as run, pytest.raises(IndexError):
        run(b"")


def test_protocol_notices_what_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DmaMap, "pack", lambda self: DmaMap.FORMAT.pack(32, 0, 0, 0, self.size))
    with target("protocol") as run, pytest.raises(AssertionError):
        run(MAP.data)


def test_transport_notices_bytes_of_another_message(monkeypatch: pytest.MonkeyPatch) -> None:
    receive = Connection.receive

    def receive_less(self: Connection) -> Message:
        found = receive(self)
        found.payload = found.payload[1:]
        return found

    monkeypatch.setattr(Connection, "receive", receive_less)
    with target("transport") as run, pytest.raises(AssertionError):
        run(pack([MAP]))


def test_transport_notices_files_of_another_message(monkeypatch: pytest.MonkeyPatch) -> None:
    receive = Connection.receive

    def receive_reversed(self: Connection) -> Message:
        found = receive(self)
        found.fds.reverse()
        return found

    monkeypatch.setattr(Connection, "receive", receive_reversed)
    with target("transport") as run:
        run(pack([ENABLE_MSI, MAP]))
        with pytest.raises(AssertionError):
            run(pack([Piece(MAP.data, (RAM, EVENTFD))]))


def test_transport_notices_what_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(Message, "close_fds", lambda self: left.extend(self.fds))
    with target("transport") as run, pytest.raises(AssertionError, match="left open"):
        run(pack([MAP]))
    for fd in left:
        os.close(fd)


def test_session_notices_what_is_done_though_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def set_irqs(self: Edu, _request: IrqSet, _eventfds: Sequence[int]) -> None:
        self.region_write(0, LIVENESS, u32(1))
        raise refuse(1, "no")

    monkeypatch.setattr(Edu, "set_irqs", set_irqs)
    with target("session") as run, pytest.raises(AssertionError, match="and yet done"):
        run(pack([ENABLE_MSI]))


def test_session_notices_what_a_client_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    quiesce = Edu.quiesce
    monkeypatch.setattr(Edu, "quiesce", lambda self, *, reset: quiesce(self, reset=not reset))
    with target("session") as run, pytest.raises(AssertionError, match="as it was made"):
        run(pack([WRITE]))


def test_session_notices_its_own_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def region_write(*_arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Edu, "region_write", region_write)
    with target("session") as run, pytest.raises(ZeroDivisionError):
        run(pack([WRITE]))


def test_growth_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "ROUND", 2)
    monkeypatch.setattr(leaks, "ALLOWANCE", 1 << 20)
    kept: list[bytes] = []

    def some(run: Callable[[], None]) -> None:
        watch = leaks.Leaks()
        for _ in range(20):
            with watch.none():
                run()

    some(lambda: None)
    with pytest.raises(AssertionError, match="bytes more"):
        some(lambda: kept.append(b"1" * BAR_SIZE))
