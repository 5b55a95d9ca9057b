# SPDX-License-Identifier: BSD-3-Clause
"""What happens in the life of a guest with devices behind bridges; after each event they work.

One Linux guest has an NVMe disk and a network card, and a bridge for each. It lives through the
events one after the other, until its QEMU is killed in the middle of writing. Then a second guest,
whose devices are behind an IOMMU of its own, goes on with the same disk. In the end the host looks
at the disk and at what the bridges have left behind.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration import devices
from vfio_user_bridge import qemu

from .bridge import Bridge, command, lines
from .live_guest import LiveGuest, placed
from .trouble import trouble

# By these ids QEMU knows them. The last one is plugged in while the guest runs; it has no MSI-X,
# for QEMU's sake: see test_fidelity_hotplug.
DISK, CARD, LATE_CARD = "disk", "card", "late-card"
HOST = {DISK: devices.NVME, CARD: devices.E1000E, LATE_CARD: devices.RTL8139}
GUEST = {name: f"0000:{bus:02}:00.0" for bus, name in enumerate(HOST, start=1)}
DRIVER = {DISK: "nvme", CARD: "e1000e", LATE_CARD: "8139cp"}
AT_BOOT = (DISK, CARD)

SCRIPT = """
mounted() {  # run a command with the disk's file system in /mnt
    until [ -b /dev/nvme*n1 ]; do sleep 0.1; done
    mount -t ext4 /dev/nvme*n1 /mnt || return
    "$@"
    set -- $?
    umount /mnt && return $1
}
sums() { sha256sum "$@" | cut -d' ' -f1; }
write_and_read() {  # the sums of what was there, and of what is written now and read again
    dd if=/dev/urandom of=/made bs=64k count=4 2>/dev/null
    cp /made /mnt/made && sync || return
    echo 3 >/proc/sys/vm/drop_caches
    sums /mnt/known /made /mnt/made
}
disk_works() { mounted write_and_read; }
card_works() {  # at this PCI address
    until [ -e /sys/bus/pci/devices/$1/net/* ]; do sleep 0.1; done
    card=$(ls /sys/bus/pci/devices/$1/net)
    ip address flush dev $card
    ip address add 10.0.2.15/24 dev $card
    ip link set $card up
    until [ "$(cat /sys/class/net/$card/carrier)" = 1 ]; do sleep 0.1; done
    ping -c 3 -W 10 10.0.2.2
    ip link set $card down
}
transfers_of_disk() { awk '{print $1 + $5}' /sys/block/nvme*n1/stat; }
transfers_of_card() { cat /sys/class/net/eth*/statistics/tx_packets; }
begin_writing() {
    until [ -b /dev/nvme*n1 ]; do sleep 0.1; done
    mount -t ext4 /dev/nvme*n1 /mnt || return
    rm -f /enough /mnt/busy
    dd if=/dev/urandom of=/made bs=64k count=4 2>/dev/null
    cp /made /mnt/before && sync && sums /made || return
    while [ ! -e /enough ]; do cp /made /mnt/busy && sync /mnt/busy || exit; done >/failed 2>&1 &
}
writing_goes_on() {  # until the disk has been written to 20 times more
    writes() { awk '{print $5}' /sys/block/nvme*n1/stat; }
    enough=$(($(writes) + 20))
    until [ $(writes) -ge $enough ]; do sleep 0.1; done
}
end_writing() {
    touch /enough && wait
    cat /failed
    echo 3 >/proc/sys/vm/drop_caches
    sums /mnt/busy
    umount /mnt
}
"""
IOMMU = ("-device", "intel-iommu,caching-mode=on")  # without it QEMU doesn't see new mappings
IOMMU_KERNEL = "intel_iommu=on iommu.strict=1"

KNOWN = os.urandom(1 << 18)
PAUSE = 3.0  # seconds

Test = Callable[..., None]


def sum_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Life:
    """The bridges, and the guest of the moment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._guest: LiveGuest | None = None
        self._viommu = False
        self.bridges = {name: Bridge(bdf) for name, bdf in HOST.items()}
        self._idle = {name: held(bridge) for name, bridge in self.bridges.items()}

    def guest(self, *, viommu: bool = False) -> LiveGuest:
        """The guest that runs if it is of that kind; else a new one, in which the devices work."""
        if self._guest and self._guest.alive and self._viommu == viommu:
            return self._guest
        self.end_guest()
        self._guest = guest = LiveGuest(
            self._folder,
            {name: self.device(name) if name in AT_BOOT else None for name in HOST},
            SCRIPT,
            machine=IOMMU if viommu else (),
            append=IOMMU_KERNEL if viommu else "",
        )
        self._viommu = viommu
        check(guest, *AT_BOOT)
        return guest

    def end_guest(self) -> None:
        """Power off the guest if it runs."""
        if not self._guest:
            return
        if self._guest.alive:
            self._guest.power_off()
        self.await_idle()
        self._guest.close()
        self._guest = None

    def device(self, name: str) -> dict[str, object]:
        return qemu.device(self.bridges[name].socket(HOST[name]))

    def await_idle(self, *names: str) -> None:
        """Wait until these bridges, else all, have no client; nothing of one must be left."""
        for name in names or HOST:
            bridge = self.bridges[name]
            deadline = time.monotonic() + 30
            while len(farewells(bridge)) < len(lines(bridge.log(), ": serving pid ")):
                assert time.monotonic() < deadline, f"the bridge of the {name} keeps its client"
                time.sleep(0.05)
            assert held(bridge) == self._idle[name]

    def restart_bridge(self, name: str) -> None:
        self.end_bridge(name)
        self.bridges[name] = Bridge(HOST[name])
        self._idle[name] = held(self.bridges[name])

    def end_bridge(self, name: str) -> None:
        bridge = self.bridges[name]
        assert bridge.stop() == 0
        assert not trouble(bridge.log())

    def close(self) -> None:
        if self._guest:
            self._guest.close()
        for bridge in self.bridges.values():
            bridge.__exit__(None, None, None)


def held(bridge: Bridge) -> tuple[int, str]:
    """What a bridge holds: how many file descriptors, and how much locked memory."""
    process = Path(f"/proc/{bridge.process.pid}")
    (locked,) = lines((process / "status").read_text(), "^VmLck:")
    return len(list((process / "fd").iterdir())), locked


def farewells(bridge: Bridge) -> list[dict[str, int]]:
    """For each client that has gone, how many messages there were, by command."""
    return [
        {name: int(count) for name, count in re.findall(r"([A-Z_]+) (\d+)", line)}
        for line in lines(bridge.log(), "client gone after")
    ]


def check(guest: LiveGuest, *names: str) -> None:
    """Use the devices; the disk must have what was put there."""
    for name in names:
        if name == DISK:
            known, made, read_back = guest.run("disk_works").split()
            assert known == sum_of(KNOWN)
            assert read_back == made
        else:
            assert "3 packets received" in guest.run(f"card_works {GUEST[name]}")


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    folder = tmp_path_factory.mktemp("life")
    content = folder / "content"
    content.mkdir()
    (content / "known").write_bytes(KNOWN)
    subprocess.run(("modprobe", "-a", "nvme", "ext4"), check=True)
    subprocess.run(
        ("mke2fs", "-q", "-t", "ext4", "-d", content, devices.disk(devices.NVME)), check=True
    )
    bound = command("bind", *HOST.values())
    assert not bound.returncode, bound.stderr
    living = Life(folder)
    yield living
    living.close()
    command("unbind", *HOST.values())


def both(what: str) -> Callable[[Test], Test]:
    """The test is of all devices that the guest boots with."""

    def mark(test: Test) -> Test:
        for name in AT_BOOT:
            test = pytest.mark.fidelity(HOST[name], what)(test)
        return test

    return mark


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.fidelity(HOST[name], "rebind")) for name in AT_BOOT],
)
def test_driver_unbound_and_bound(life: Life, name: str) -> None:
    guest = life.guest()
    driver = f"/sys/bus/pci/drivers/{DRIVER[name]}"
    guest.run(f"echo {GUEST[name]} >{driver}/unbind && [ ! -e {driver}/{GUEST[name]} ]")
    guest.run(f"echo {GUEST[name]} >{driver}/bind && [ -e {driver}/{GUEST[name]} ]")
    check(guest, name)


@pytest.mark.fidelity(HOST[LATE_CARD], "hot-plug")
def test_plugged_unplugged_and_plugged(life: Life) -> None:
    guest = life.guest()
    seen = f"/sys/bus/pci/devices/{GUEST[LATE_CARD]}"
    card = placed(LATE_CARD, life.device(LATE_CARD))
    guest.run(f"[ ! -e {seen} ]")
    guest.qmp.command("device_add", **card)
    check(guest, LATE_CARD)
    guest.qmp.command("device_del", id=LATE_CARD)
    guest.qmp.deleted(LATE_CARD)
    guest.run(f"[ ! -e {seen} ]")
    guest.qmp.command("device_add", **card)  # at once: the bridge may still be putting it back
    check(guest, LATE_CARD, *AT_BOOT)
    guest.qmp.command("device_del", id=LATE_CARD)
    guest.qmp.deleted(LATE_CARD)
    life.await_idle(LATE_CARD)


@both("stop and cont")
def test_stopped_and_continued(life: Life) -> None:
    guest = life.guest()
    made = guest.run("begin_writing")
    guest.run("writing_goes_on")
    guest.qmp.command("stop")
    time.sleep(PAUSE)  # nothing to wait for: that time passes is the event
    guest.qmp.command("cont")
    guest.run("writing_goes_on")
    assert guest.run("end_writing") == made
    check(guest, *AT_BOOT)


@both("reboot")
def test_rebooted(life: Life) -> None:
    guest = life.guest()
    guest.reboot()
    check(guest, *AT_BOOT)


@both("SIGKILL")
def test_killed_while_it_writes(life: Life) -> None:
    """The disk's bridge lives on, the card's is another for the next guest."""
    guest = life.guest()
    made = guest.run("begin_writing")
    guest.run("writing_goes_on")
    guest.kill()
    life.await_idle()
    life.restart_bridge(CARD)
    guest = life.guest(viommu=True)
    assert guest.run("dmesg | grep -c 'recovery complete'") == "1"
    assert guest.run("mounted sums /mnt/before") == made
    check(guest, *AT_BOOT)


@both("vIOMMU")
def test_behind_an_iommu_of_the_guest(life: Life) -> None:
    """The guest maps and unmaps for every transfer, and each time the bridge hears of it."""
    guest = life.guest(viommu=True)
    for name in AT_BOOT:
        assert guest.run(f"cat /sys/bus/pci/devices/{GUEST[name]}/iommu_group/type") == "DMA"
    check(guest, *AT_BOOT)
    transfers = {name: int(guest.run(f"transfers_of_{name}")) for name in AT_BOOT}
    life.end_guest()
    for name in AT_BOOT:
        counts = farewells(life.bridges[name])[-1]
        assert min(counts["DMA_MAP"], counts["DMA_UNMAP"]) > transfers[name] > 0


@both("what is left")
def test_nothing_is_left_behind(life: Life) -> None:
    life.end_guest()
    for name in HOST:
        life.end_bridge(name)
    unbound = command("unbind", devices.NVME)
    assert not unbound.returncode, unbound.stderr
    subprocess.run(("e2fsck", "-f", "-n", devices.disk(devices.NVME)), check=True)
