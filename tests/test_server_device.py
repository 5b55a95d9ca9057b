# SPDX-License-Identifier: BSD-3-Clause
"""What a device sees of its server: one client after another, rest between them, and the end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from vfio_user_bridge.device import Keep
from vfio_user_bridge.handover.ledger import Ledger
from vfio_user_bridge.handover.store import Store
from vfio_user_bridge.limits import Limits
from vfio_user_bridge.listener import listen
from vfio_user_bridge.notify import Manager
from vfio_user_bridge.server import Server

from . import client as c
from .client import connect
from .descriptors import memory_files
from .fake_device import FakeDevice
from .wire import dma_map, u16


class SlowDevice(FakeDevice):
    """Comes to rest when *rest* is set, not before."""

    def __init__(self) -> None:
        super().__init__()
        self.resting = threading.Event()
        self.rest = threading.Event()

    def quiesce(self, *, reset: bool) -> None:
        self.resting.set()
        assert self.rest.wait(10)
        super().quiesce(reset=reset)


def too_early(_number: int, _frame: FrameType | None) -> None:
    raise RuntimeError("the story ended before the server ran")


class WantedDevice(FakeDevice):
    """One that the host may want back: `wanted` is the kernel's eventfd."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.heeded, self.told = threading.Event(), threading.Event()

    @property
    def host_request(self) -> int:
        return self.wanted

    def heed_host_request(self) -> None:
        os.eventfd_read(self.wanted)
        self.heeded.set()

    def save(self, keep: Keep) -> dict[str, Any]:  # noqa: ARG002 - there is nothing to keep
        """A successor is told."""
        if self.heeded.is_set():
            self.told.set()
        return {}

    def close(self) -> None:
        super().close()
        os.close(self.wanted)


def serve(
    device: FakeDevice,
    path: Path,
    story: Callable[[], None],
    *,
    grace: float = 30.0,
    ends_itself: bool = False,
    store: Store | None = None,
) -> None:
    """Serve *device* while *story* runs in another thread.

    Its end is the server's, unless that *ends_itself*.
    """
    failures: list[BaseException] = []

    def tell() -> None:
        try:
            story()
        except BaseException as error:  # it is raised below
            failures.append(error)
        if failures or not ends_itself:
            os.kill(os.getpid(), signal.SIGTERM)

    server = Server(limits=Limits(grace=grace), store=store)
    server.add(device, listen(path, 0o600))
    ledgers = [port.ledger for port in server.ports() if isinstance(port.ledger, Ledger)]
    before = signal.signal(signal.SIGTERM, too_early)
    teller = threading.Thread(target=tell)
    teller.start()
    try:
        server.run()
    finally:
        signal.signal(signal.SIGTERM, before)
        teller.join()
        for ledger in ledgers:
            ledger.journal.close()
    for failure in failures:
        raise failure


def test_the_next_client_waits_until_the_device_is_at_rest(tmp_path: Path) -> None:
    device, path = SlowDevice(), tmp_path / "a.sock"

    def story() -> None:
        try:
            with closing(connect(path)) as first:
                first.negotiate()
            assert device.resting.wait(10)
            with closing(connect(path)) as second, closing(connect(path)) as third:
                second.send(c.VERSION, u16(0, 0))
                second.socket.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    second.receive()
                assert device.calls == []
                device.rest.set()
                second.socket.settimeout(10)
                assert second.receive().command == c.VERSION
                third.wait_until_hung_up()  # one may be served, not two
                assert second.ask(c.RESET) == b""
                assert device.calls == [("quiesce", True), ("reset",)]
        finally:
            device.rest.set()

    serve(device, path, story)


def test_clients_that_wait_cost_nothing(tmp_path: Path) -> None:
    """Some hundred come and go while the device is put back, and none has a thread or a file."""
    device, path = SlowDevice(), tmp_path / "a.sock"

    def story() -> None:
        try:
            with closing(connect(path)) as first:
                first.negotiate()
            assert device.resting.wait(10)
            threads = threading.active_count()
            for _ in range(100):
                connect(path).close()
            with closing(connect(path)) as last:
                assert threading.active_count() == threads
                device.rest.set()
                last.negotiate()
        finally:
            device.rest.set()

    serve(device, path, story)


def test_at_the_end_the_device_is_closed_when_all_is_taken_back(tmp_path: Path) -> None:
    device, path = FakeDevice(), tmp_path / "a.sock"
    with memory_files(1) as files:
        clients = []

        def story() -> None:
            clients.append(connect(path))
            clients[0].negotiate()
            clients[0].ask(c.DMA_MAP, dma_map(0, 4096), files)

        serve(device, path, story)
    assert [call[0] for call in device.calls] == ["dma_map", "quiesce", "dma_unmap", "close"]
    clients[0].wait_until_hung_up()
    clients[0].close()


def test_a_defect_of_a_device_does_not_end_the_server(tmp_path: Path) -> None:
    device, path = FakeDevice(), tmp_path / "a.sock"
    device.failures["reset"] = ZeroDivisionError("a defect")

    def story() -> None:
        for _ in range(2):
            with closing(connect(path)) as client:
                client.negotiate()
                client.send(c.RESET)
                client.wait_until_hung_up()

    serve(device, path, story)
    verbs = [call[0] for call in device.calls]
    assert verbs == ["reset", "quiesce", "reset", "quiesce", "close"]


def test_a_device_that_the_host_wants_is_closed_when_its_client_has_gone(tmp_path: Path) -> None:
    device, path = WantedDevice(), tmp_path / "a.sock"

    def story() -> None:
        with closing(connect(path)) as client, closing(connect(path)) as late:
            client.negotiate()
            os.eventfd_write(device.wanted, 1)
            assert device.heeded.wait(10)
            assert device.told.wait(10)
            late.wait_until_hung_up()
            assert client.ask(c.RESET) == b""  # it has its time
        assert closed.wait(10)
        assert not path.exists()

    closed = watch_close(device)
    serve(device, path, story, ends_itself=True, store=Store(Manager({})))
    assert [call[0] for call in device.calls] == ["reset", "quiesce", "close"]


def test_a_client_that_keeps_a_wanted_device_too_long_is_put_out(tmp_path: Path) -> None:
    device, path = WantedDevice(), tmp_path / "a.sock"

    def story() -> None:
        with closing(connect(path)) as client:
            client.negotiate()
            os.eventfd_write(device.wanted, 1)
            client.wait_until_hung_up()
            assert closed.wait(10)

    closed = watch_close(device)
    serve(device, path, story, grace=0.05, ends_itself=True)
    assert [call[0] for call in device.calls] == ["quiesce", "close"]


def watch_close(device: WantedDevice) -> threading.Event:
    closed, close = threading.Event(), device.close

    def tell() -> None:
        close()
        closed.set()

    device.close = tell  # type: ignore[method-assign]
    return closed
