# SPDX-License-Identifier: BSD-3-Clause
"""The bridge is replaced, and dies, 20 times each, and a guest that works all the time can't tell.

One bridge serves a disk and a network card to the guest, and a third device to a client that
measures for how long nobody answers it.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from integration import devices
from integration.away import Away
from integration.replace import kill, pid, upgrade
from vfio_user_bridge import qemu

from .bridge import Bridge, bind, command, lines
from .live_guest import LiveGuest
from .memory import pinned
from .trouble import iommu_faults
from .workload import IOMMU, KERNEL, SCRIPT, Workload, content

DISK, CARD, WATCHED = SERVED = (devices.NVME, devices.E1000E, devices.EDU_ALONE)
TIMES = 20
# Seconds: between two events at most, and from one until memory comes or goes at most. That takes
# QEMU 30 ms; a new bridge takes seconds until it is ready to take over.
PAUSE, SOON, SOONER = 1.0, 2.0, 0.03
WATCH = 0.02  # seconds between two questions; more often, they would have the guest wait

MEMORY, DIMM = "256M", 2 << 20
SLOTS = ("-m", f"{MEMORY},slots={TIMES},maxmem=1G")

#: what happens to the bridge that has this control socket
Event = Callable[[Path], None]

SEED = int(os.environ.get("SEED") or int.from_bytes(os.urandom(4)))
chance = random.Random(SEED)  # nosec B311 - secret from nobody


class Stage:
    """A bridge, a guest that works, and a client that watches."""

    def __init__(self, folder: Path) -> None:
        self.control = folder / "control"
        options = ("--control", str(self.control))
        self.bridge = Bridge(*SERVED, options=options, under=("supervise",))
        self.idle = pinned()
        written = content(SEED)
        sockets = {"disk": self.bridge.socket(DISK), "card": self.bridge.socket(CARD)}
        self.guest = LiveGuest(
            folder,
            {name: qemu.device(path) for name, path in sockets.items()},
            SCRIPT,
            machine=(*IOMMU, *SLOTS),
            append=KERNEL,
            memory=MEMORY,
            files={"content": written},
        )
        self.workload = Workload(self.guest, written)
        self.watcher = self.bridge.client(WATCHED)
        self.away = Away(self.watcher.wire, pause=WATCH)

    def change_memory(self, number: int) -> None:
        """Plug a DIMM, and unplug it next time: for the card, a file is mapped or unmapped."""
        qmp, dimm, ram = self.guest.qmp, f"dimm{number // 2}", f"ram{number // 2}"
        if number % 2:
            qmp.command("device_del", id=dimm)
            qmp.deleted(dimm)
            qmp.command("object-del", id=ram)
        else:
            backend = {"qom_type": "memory-backend-memfd", "size": DIMM, "share": True}
            qmp.command("object-add", id=ram, **backend)
            qmp.command("device_add", driver="pc-dimm", id=dimm, memdev=ram)

    def end(self) -> None:
        """The guest powers off, and the other client goes."""
        self.away.close()
        self.watcher.wire.close()
        self.guest.power_off()

    def close(self) -> None:
        self.guest.close()
        self.bridge.__exit__(None, None, None)


def nothing(_control: Path) -> None:
    """Shows what the machine itself does to the guest."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    subprocess.run(("modprobe", "nvme"), check=True)  # for the disk, in the end
    bind(*SERVED)
    setting = Stage(tmp_path_factory.mktemp("handover"))
    yield setting
    setting.close()
    command("unbind", *SERVED)


@pytest.mark.parametrize(
    ("event", "times", "soon"),
    [(nothing, 4, 0.0), (upgrade, TIMES, SOON), (kill, TIMES, SOONER)],
    ids=("nothing", "upgrade", "SIGKILL"),
)
def test_the_guest_cannot_tell(
    stage: Stage, event: Event, times: int, soon: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """At random moments, and each within so many seconds of a change of the guest's memory."""
    bridge, guest, workload = stage.bridge, stage.guest, stage.workload
    pages, faults, interrupts = pinned(), iommu_faults(), workload.interrupts()
    workload.begin()
    workload.go_on()
    away = []
    for number in range(times):
        time.sleep(chance.uniform(0, PAUSE))
        before = pid(stage.control)
        stage.away.longest()  # until now
        with ThreadPoolExecutor(1) as pool:
            happening = pool.submit(event, stage.control)
            time.sleep(chance.uniform(0, soon))
            stage.change_memory(number)
            happening.result()
        away.append(stage.away.longest())
        assert event is nothing or pid(stage.control) != before
    workload.go_on()
    rounds = workload.end()
    median, most = statistics.median(away) * 1e3, max(away) * 1e3
    log = bridge.log()
    amid = len(lines(log, "its bridge was killed over"))
    with capsys.disabled():
        print(f"\n{event.__name__}: away {median:.0f} ms, {most:.0f} ms at most, of {times} times")
        print(f"{amid} of them over a message; the guest's rounds: {rounds}; seed {SEED}")
    after = workload.interrupts()
    assert all(after[vector] > count for vector, count in interrupts.items())
    assert guest.alive
    assert not guest.complaints()
    assert iommu_faults() == faults
    assert len(lines(log, ": serving pid")) == len(SERVED)
    assert not lines(log, "client gone| ERROR |^Traceback")
    assert pinned() == pages


def test_everything_is_given_back(stage: Stage) -> None:
    stage.end()
    assert stage.bridge.stop() == 0
    assert not list(stage.bridge.folder.glob("*.sock"))
    assert pinned() == stage.idle
    home = command("unbind", *SERVED)
    assert not home.returncode, home.stderr
    with devices.disk(DISK).open("rb") as disk:
        for place, written in stage.workload.written.items():
            disk.seek(place)
            assert disk.read(len(written)) == written
