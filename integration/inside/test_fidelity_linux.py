# SPDX-License-Identifier: BSD-3-Clause
"""Two Linux guests see and do the same: one has its devices by vfio-pci, one through a bridge.

One process serves all devices of the latter. What a guest writes to a disk, the machine's
own driver finds there afterwards.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration import devices
from vfio_user_bridge import qemu

from . import linux_script
from .bridge import Bridge, bind, command, lines
from .comparison import virtual_function
from .linux_script import CONTENT_SIZE, READ_SIZE, Seen

DISK_DRIVERS = ("nvme", "virtio_blk", "xhci_pci", "usb_storage", "sd_mod")
DISKS = (devices.NVME, devices.NVME_PORT, devices.VIRTIO_BLK, devices.XHCI)
CARDS = (devices.E1000E, devices.E1000, devices.RTL8139, devices.IGB, devices.IGB_VF)
WITH_ROM = CARDS[:3]
EDUS = (devices.EDU, *devices.EDU_PAIR)
DEVICES = (*EDUS, *DISKS, *CARDS)

DIRECT, BRIDGED = "direct", "bridged"
PLACES = {DIRECT: 8 << 20, BRIDGED: 16 << 20}  # on each disk, in bytes: where a guest writes

#: What the guest's script does with a device, and the table's column for it.
COLUMNS = {
    "lspci": "lspci",
    "resource": "resources",
    "rom": "ROM file",
    "driver": "driver",
    "edu": "works",
    "disk": "works",
    "card": "works",
    "interrupts": "vectors",
}
KINDS = {
    EDUS: ("edu", "resource"),
    DISKS: ("disk", "interrupts", "resource", "driver"),
    CARDS: ("card", "interrupts", "resource", "driver"),
    WITH_ROM: ("rom",),
}
CHECKS = [(bdf, check) for bdfs, checks in KINDS.items() for bdf in bdfs for check in checks]
#: What these checks say if the device works: the comparison alone would not mind two failures.
WORKING = {
    "edu": r"0x010000ED\n0xEDCBA987\n0x00375F00\n",
    "disk": rf"{devices.DISK_SIZE} bytes\n"
    r"(\d+\+0 records (in|out)\n){2}machine's: (\w+)\n"
    r"(\d+\+0 records (in|out)\n){2}guest's: \3\n",
    "card": r"\w+: ([0-9a-f]{2}:?){6}, carrier 1\n"
    r"(\d+: 3 packets transmitted, 3 packets received, 0% packet loss\n){3}",
    "driver": r"[\w-]+\n",
    "rom": r"[0-9a-f]{8}\n",
    "interrupts": r"(.*: \w+\n)*.*: fired\n(.*: \w+\n)*",
}


#: What kernels say when the machine that emulates them is busy, whatever they do themselves.
TIMING = (
    "hrtimer: interrupt took",
    "tsc: Unable to calibrate against PIT",
    "APIC calibration not consistent with PM-Timer",
    "workqueue: .* hogged CPU",
)


@dataclass
class Guest:
    """What a guest with all the devices saw, and what was said meanwhile."""

    seen: Seen
    machine_log: str  # of the test machine's kernel
    bridge_log: str = ""


def kernel_log() -> str:
    """Return the machine's kernel log at warning level or above."""
    said = subprocess.run(("dmesg", "-r"), capture_output=True, text=True, check=True).stdout
    return "".join(f"{line}\n" for line in lines(said, "^<[0-4]>"))


def boot(how: str, content: bytes, results: Path) -> Guest:
    """Boot the guest that has its devices directly, or the one that has them through a bridge."""
    results.mkdir()
    before = kernel_log()

    def run(properties: dict[str, dict[str, object]]) -> Seen:
        properties[devices.EDU_PAIR[0]]["multifunction"] = True
        return linux_script.boot(properties, CHECKS, content, PLACES[how], results)

    if how == DIRECT:
        seen = run({bdf: {"driver": "vfio-pci", "host": bdf} for bdf in DEVICES})
        return Guest(seen, kernel_log().removeprefix(before))
    with Bridge(*DEVICES) as bridge:
        seen = run({bdf: qemu.device(bridge.socket(bdf)) for bdf in DEVICES})
        assert bridge.stop() == 0
        (results / "bridge").write_text(bridge.log())
        return Guest(seen, kernel_log().removeprefix(before), bridge.log())


@pytest.fixture(scope="module")
def content() -> bytes:
    """Return what disks begin with, and what the guests write to them: new in every run."""
    return os.urandom(CONTENT_SIZE)


@pytest.fixture(scope="module")
def guests(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Guest]:
    """Both guests, after they have ended; the disks are back with the machine's drivers."""
    subprocess.run(("modprobe", "-a", *DISK_DRIVERS), check=True)
    command("unbind", *DISKS)  # whoever had them before
    for bdf in DISKS:
        with devices.disk(bdf).open("r+b", buffering=0) as file:
            file.write(content)
            os.fsync(file.fileno())
    results = tmp_path_factory.mktemp("guests")
    with virtual_function():
        bind(*DEVICES)
        both = {how: boot(how, content, results / how) for how in PLACES}
        unbound = command("unbind", *DISKS, devices.IGB_VF)
    assert not unbound.returncode, unbound.stderr
    return both


def comparable(check: str, text: str) -> str:
    """Return what a guest said without what differs between any two boots of one machine."""
    if check == "log":
        said = [re.sub(r"\[ *\d+\.\d+\]", "[]", line) for line in text.splitlines(keepends=True)]
        return "".join(line for line in said if not re.search("|".join(TIMING), line))
    if check == "interrupts":
        return "".join(sorted(_vector(line) for line in text.splitlines()))
    return text


def _vector(line: str) -> str:
    """A line of /proc/interrupts: whether it fired, not how often, which is a matter of time.

    Linux numbers interrupts and NVMe controllers as they come, and two come at the same time. A
    network card's vector without a queue tells of its link, which came up before or after the
    driver asked to be told.
    """
    _number, count, what = re.split(r"\s+", line.strip(), maxsplit=2)
    what = re.sub(r"\bnvme\d+", "nvme", " ".join(what.split()))
    state = "fired" if int(count) else "silent"
    return f"{what}: {'link' if re.search(r'MSIX.* eth[0-9]+$', what) else state}\n"


def compare(check: str, direct: str, bridged: str) -> None:
    """Fail with a diff if the two aren't the same."""
    diff = difflib.unified_diff(
        comparable(check, direct).splitlines(),
        comparable(check, bridged).splitlines(),
        DIRECT,
        BRIDGED,
        lineterm="",
    )
    difference = "\n".join(diff)
    assert not difference, difference


def test_one_byte_is_a_difference(guests: dict[str, Guest]) -> None:
    seen = guests[DIRECT].seen[devices.NVME_PORT, "lspci"]
    (last,) = lines(seen, "^ff0: ")
    changed = seen.replace(last, last[:-1] + "1")
    compare("lspci", seen, seen)
    # pytest indents what an assertion says.
    with pytest.raises(AssertionError, match=rf"-{last}\n\s*\+{last[:-1]}1"):
        compare("lspci", seen, changed)


@pytest.mark.parametrize(
    ("bdf", "check"),
    [
        pytest.param(bdf, check, marks=pytest.mark.fidelity(bdf, COLUMNS[check]))
        for bdf, check in (*((bdf, "lspci") for bdf in DEVICES), *CHECKS)
    ],
)
def test_a_device_in_both_guests(bdf: str, check: str, guests: dict[str, Guest]) -> None:
    direct, bridged = (guests[how].seen[bdf, check] for how in PLACES)
    compare(check, direct, bridged)
    assert re.fullmatch(WORKING.get(check, r"(.+\n)+"), comparable(check, bridged)), bridged


@pytest.mark.fidelity("the guest", "kernel log")
def test_the_guests_kernel_log(guests: dict[str, Guest]) -> None:
    direct, bridged = (guests[how].seen["guest", "log"] for how in PLACES)
    compare("log", direct, bridged)


@pytest.mark.fidelity("the machine", "kernel log")
def test_the_machines_kernel_log(guests: dict[str, Guest]) -> None:
    compare("log", guests[DIRECT].machine_log, guests[BRIDGED].machine_log)


def test_qemu_has_nothing_to_say(guests: dict[str, Guest]) -> None:
    """Behind a bridge it has no message refused, no device that lacks what it expects."""
    assert not guests[BRIDGED].seen["qemu", "log"]


@pytest.mark.parametrize(
    "bdf", [pytest.param(bdf, marks=pytest.mark.fidelity(bdf, "works")) for bdf in DISKS]
)
def test_the_machine_finds_what_guests_wrote(
    bdf: str, guests: dict[str, Guest], content: bytes
) -> None:
    with devices.disk(bdf).open("rb", buffering=0) as disk:
        for how in guests:
            disk.seek(PLACES[how])
            assert disk.read(CONTENT_SIZE) == content, how


@pytest.mark.parametrize("bdf", DISKS)
def test_the_device_moved_the_data(bdf: str, guests: dict[str, Guest]) -> None:
    """The bridge had fewer messages than there were pages read."""
    (line,) = lines(guests[BRIDGED].bridge_log, f"{bdf}: client gone")
    counted = re.search(r"(\d+) messages", line)
    assert counted, line
    assert int(counted[1]) < READ_SIZE / 4096, line
