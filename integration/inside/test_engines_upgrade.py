# SPDX-License-Identifier: BSD-3-Clause
"""A bridge is replaced, or killed, under a guest whose disk the other engine serves.

It is killed between two messages: over one, the client would be put out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration import devices
from integration.replace import kill, pid, upgrade
from tests.engines import LIBRARY, need
from vfio_user_bridge import qemu

from .bridge import Bridge, bind, command
from .live_guest import LiveGuest
from .workload import complaints

TIMES = 5
PATIENCE = 120.0  # seconds

#: `work` writes to the disk, and reads it, past the page cache
SCRIPT = """
work() {
    while [ ! -e /enough ]; do
        dd if=/dev/urandom of=/made bs=64k count=4 2>/dev/null
        dd if=/made of=/dev/nvme0n1 bs=64k oflag=direct conv=fsync 2>/dev/null || echo not written
        dd if=/dev/nvme0n1 bs=64k count=4 iflag=direct 2>/dev/null | cmp - /made
        echo round
    done
}
until [ -b /dev/nvme0n1 ]; do sleep 0.1; done
dmesg -c >/dev/null
"""


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "control"


@pytest.fixture
def guest(control: Path, tmp_path: Path) -> Iterator[LiveGuest]:
    need(LIBRARY)
    bind(devices.NVME)
    options = ("--control", str(control), "--engine", LIBRARY)
    with Bridge(devices.NVME, options=options, under=("supervise",)) as bridge:
        disk = qemu.device(bridge.socket(devices.NVME))
        guest = LiveGuest(tmp_path, {"disk": disk}, SCRIPT)
        try:
            yield guest
        finally:
            guest.close()
    command("unbind", devices.NVME)


def count(guest: LiveGuest, what: str) -> int:
    return int(guest.run(what))


def rounds(guest: LiveGuest) -> int:
    return count(guest, "wc -l </log")


def interrupts(guest: LiveGuest) -> int:
    return count(guest, "awk '/nvme/ {sum += $2} END {print sum}' /proc/interrupts")


@pytest.mark.parametrize("event", [upgrade, kill])
def test_the_guest_cannot_tell(
    guest: LiveGuest, control: Path, event: Callable[[Path], None]
) -> None:
    guest.run("work >/log 2>&1 & worker=$!")
    for _ in range(TIMES):
        before = pid(control)
        event(control)
        done, had = rounds(guest), interrupts(guest)
        deadline = time.monotonic() + PATIENCE
        while rounds(guest) < done + 2:
            assert guest.alive
            assert time.monotonic() < deadline
        assert interrupts(guest) > had
        assert pid(control) != before
    guest.run("touch /enough; wait $worker")
    assert set(guest.run("cat /log").split()) == {"round"}
    assert not complaints(guest)
    assert not guest.complaints()
    guest.power_off()
