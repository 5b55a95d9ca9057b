# SPDX-License-Identifier: BSD-3-Clause
"""What the operator does to a device while its client has it at work."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from vfio_user_bridge.device import Keep
from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.handover.document import unpack
from vfio_user_bridge.handover.ledger import new_ledger
from vfio_user_bridge.handover.store import Store
from vfio_user_bridge.listener import listen
from vfio_user_bridge.notify import Manager
from vfio_user_bridge.peers import peer
from vfio_user_bridge.port import Port
from vfio_user_bridge.protocol import Buffer
from vfio_user_bridge.session import Session
from vfio_user_bridge.transport import Connection

from .client import REGION_WRITE, Client
from .fake_device import FakeDevice
from .wire import region

PATIENCE = 20.0


class Slow(FakeDevice):
    """Its writes take until they may end."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.may_end = threading.Event(), threading.Event()

    def save(self, keep: Keep) -> dict[str, Any]:  # noqa: ARG002 - there is nothing to keep
        return {}

    def region_write(self, index: int, offset: int, data: Buffer) -> None:
        self.began.set()
        assert self.may_end.wait(PATIENCE)
        super().region_write(index, offset, data)


@pytest.fixture
def device() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    if not slow.asked("close"):
        slow.close()


@pytest.fixture
def port(device: Slow, tmp_path: Path) -> Iterator[Port]:
    listener = listen(tmp_path / "socket", 0o600)
    yield Port(device, listener)
    listener.close()


@contextmanager
def visited(port: Port) -> Iterator[Client]:
    ours, theirs = socket.socketpair()
    connection = Connection(ours)
    session = Session(connection, port.device, "a client", turn=port.turn)
    port.admit(connection, peer(ours), session)
    thread = threading.Thread(target=session.run)
    thread.start()
    client = Client(theirs, PATIENCE)
    client.negotiate()
    try:
        yield client
    finally:
        client.close()
        thread.join(PATIENCE)
        port.over.set()


def test_a_reset_waits_for_the_end_of_a_message(port: Port, device: Slow) -> None:
    with visited(port) as client, ThreadPoolExecutor() as pool:
        client.send(REGION_WRITE, region(0, 0, bytes(4)))
        assert device.began.wait(PATIENCE)
        resetting = pool.submit(port.reset)
        time.sleep(0.05)
        assert not device.asked("reset")
        device.may_end.set()
        resetting.result(PATIENCE)
        assert [verb for verb, *_ in device.asked("region_write", "reset")] == [
            "region_write",
            "reset",
        ]


def test_but_not_for_ever(port: Port, device: Slow) -> None:
    with visited(port) as client:
        client.send(REGION_WRITE, region(0, 0, bytes(4)))
        assert device.began.wait(PATIENCE)
        with (
            mock.patch("vfio_user_bridge.port._PATIENCE", 0.01),
            pytest.raises(BridgeError, match=r"^fake is at work: try again$"),
        ):
            port.reset()
        assert port.status().state == "serving"  # that is told all the same
        device.may_end.set()
    assert not device.asked("reset")


def test_what_is_told_while_it_is_at_work_is_written_down_later(port: Port, device: Slow) -> None:
    port.ledger = ledger = new_ledger(port, Store(Manager({})), None)
    with visited(port) as client, mock.patch("vfio_user_bridge.port._PATIENCE", 0.01):
        client.send(REGION_WRITE, region(0, 0, bytes(4)))
        assert device.began.wait(PATIENCE)
        port.drain(True)
        port.catch_up()
        before = unpack(ledger.journal.document)["draining"]
        device.may_end.set()
        client.receive()
        port.catch_up()
        after = unpack(ledger.journal.document)["draining"]
    ledger.journal.close()
    assert (before, after) == (False, True)


def test_states(port: Port) -> None:
    assert port.status().state == "no client"
    with visited(port) as client:
        assert port.status().state == "serving"
        port.deadline = time.monotonic() + 30
        assert port.status().state == "wanted by the host"
        client.socket.shutdown(socket.SHUT_WR)
        assert port.status().state == "coming to rest"
    assert port.status().state == "no client"


def test_a_device_that_was_given_back_is_nobodys(port: Port, device: Slow) -> None:
    port.close()
    with pytest.raises(BridgeError, match=r"^fake is given back: it isn't served any more$"):
        port.reset()
    assert not device.asked("reset")
