# SPDX-License-Identifier: BSD-3-Clause
"""The host changes under a running client: its clock, its limits, its mind about the device."""

from __future__ import annotations

import errno
import resource
import time
from collections.abc import Callable, Iterator

import pytest

from integration import devices
from tests.holdings import holdings
from vfio_user_bridge.device import PciIrq

from . import edu
from .bridge import Bridge, bind, fired, lines
from .test_dma import IOVA, PAGE, memory
from .test_host_request import driver, unbind
from .test_interrupts import EVENTFD, TRIGGER, eventfds

EDU = devices.EDU_ALONE
DAY = 86400.0
STALL, GRACE = 2.0, 4.0
LONG = 30.0  # seconds that nothing takes
MAP = 4 << 20


@pytest.fixture(autouse=True)
def _bound() -> None:
    bind(EDU, devices.NVME_PORT)


# ---- The clock ------------------------------------------------------------------------------


@pytest.fixture
def jump() -> Iterator[Callable[[float], None]]:
    """Sets the clock forward by so many seconds, or back; at the end it is right again."""
    right = time.time() - time.monotonic()
    yield lambda seconds: time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)
    time.clock_settime(time.CLOCK_REALTIME, right + time.monotonic())


@pytest.mark.parametrize("seconds", [DAY, -DAY])
def test_the_clock_jumps(seconds: float, jump: Callable[[float], None]) -> None:
    """While a client is served, while it stalls, and while it has the time to let go."""
    limits = ("--limit", f"stall={STALL}", "--limit", f"grace={GRACE}")
    with Bridge(EDU, options=limits) as serving, eventfds(1) as (event,):
        with serving.client(EDU) as device:
            jump(seconds)
            edu.works(device)
            begun = time.monotonic()
            device.wire.socket.sendall(bytes(8))  # half a header
            jump(seconds)
            device.wire.wait_until_hung_up()
            assert STALL <= time.monotonic() - begun < LONG
        with serving.client(EDU) as device:
            device.set_irqs(EVENTFD | TRIGGER, PciIrq.REQ, 0, 1, [event])
            begun = time.monotonic()
            with unbind(EDU) as administrator:
                assert fired(event)
                jump(seconds)
                device.wire.wait_until_hung_up()
                assert GRACE <= time.monotonic() - begun < LONG
                assert administrator.wait(20) == 0


# ---- What may be locked ---------------------------------------------------------------------


def test_the_limit_of_locked_memory_is_lowered() -> None:
    """Without CAP_IPC_LOCK, which lifts it. The map is refused in one line, and nothing is left."""
    drop = ("setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock")
    with (
        Bridge(EDU, prefix=drop) as serving,
        serving.client(EDU) as device,
        memory(2 * MAP) as fd,
    ):
        pid = serving.process.pid
        device.dma_map(fd, IOVA, MAP)
        before = holdings(pid)
        _soft, hard = resource.prlimit(pid, resource.RLIMIT_MEMLOCK)
        resource.prlimit(pid, resource.RLIMIT_MEMLOCK, (MAP, hard))
        assert device.dma_map_refused(fd, IOVA + MAP, MAP, offset=MAP) == errno.ENOMEM
        assert holdings(pid) == before
        (line,) = lines(serving.log(), "ERROR")
        assert f"RLIMIT_MEMLOCK is {MAP} bytes, {MAP} are locked already, {2 * MAP} are" in line
        device.dma_unmap(IOVA, MAP)
        edu.works(device)
        resource.prlimit(pid, resource.RLIMIT_MEMLOCK, (hard, hard))
        device.dma_map(fd, IOVA, 2 * MAP)
        assert holdings(pid).locked == 2 * MAP >> 10


# ---- The host wants its device back from a client that doesn't heed -------------------------


def test_it_gets_it_back_when_the_grace_is_over() -> None:
    with (
        Bridge(EDU, options=("--limit", "grace=1", "--bar-mmap", "off")) as serving,
        serving.client(EDU) as device,
        memory(PAGE) as fd,
    ):
        device.enable()
        device.dma_map(fd, IOVA, PAGE)
        with unbind(EDU) as administrator:
            assert administrator.wait(20) == 0
        device.wire.wait_until_hung_up()
        assert serving.process.wait(20) == 0
    assert not driver(EDU).exists()


def test_who_may_map_bars_can_keep_it_as_long_as_it_lives() -> None:
    """But without DMA: the bridge has put the device to rest, and its maps are gone."""
    with (
        Bridge(devices.NVME_PORT, options=("--limit", "grace=1")) as serving,
        serving.client(devices.NVME_PORT) as device,
    ):
        device.enable()
        device.region_bytes(0)  # the file comes along
        with unbind(devices.NVME_PORT) as administrator:
            device.wire.wait_until_hung_up()
            assert serving.process.wait(20) == 0
            assert administrator.poll() is None
            device.__exit__(None, None, None)
            assert administrator.wait(20) == 0
