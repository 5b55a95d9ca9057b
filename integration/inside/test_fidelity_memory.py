# SPDX-License-Identifier: BSD-3-Clause
"""Guest RAM of every kind is reached by DMA, through the bridge as with QEMU's own vfio-pci.

The machine has no guest: under qtest, an NVMe controller has its admin queues and the target of an
Identify in the memory in question, so it reads and writes there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from integration import devices
from integration.pci import PciHost
from integration.qtest import Qtest, QtestError
from vfio_user_bridge.qemu import arguments

from .bridge import Bridge, command, lines
from .nvme import PAGE, SERIAL, FatalError, Nvme, identify_command
from .qmp import Qmp
from .trouble import trouble

NAME = b"bridge".ljust(20)  # the controller's serial number, see integration.devices
SIZE = 64 << 20
LOW = 0x100000
HIGH = 0x1_0000_0000  # above the hole for PCI; slots for DIMMs begin there
SLOTS = ("-m", "64M,slots=2,maxmem=4G")
# What ACPI does to take memory out (docs/specs/acpi_mem_hotplug.rst of QEMU).
ACPI_SELECT, ACPI_CONTROL, ACPI_EJECT = 0xA00, 0xA14, 1 << 3

#: from a folder to the further arguments for QEMU
Arguments = Callable[[Path], list[str]]
#: what is done with a machine; gives what is compared
Story = Callable[[Qtest, Nvme], object]
Seen = object


class Kind(NamedTuple):
    """A kind of RAM, and an address in it."""

    arguments: Arguments
    address: int = LOW


def main_memory(backend: str) -> list[str]:
    """Let this backend, without its id and size, be the machine's memory."""
    return ["-object", f"{backend},id=other,size={SIZE}", "-machine", "memory-backend=other"]


def dimm(backend: str, driver: str = "pc-dimm") -> list[str]:
    """Let this backend be in the first slot."""
    return [
        *SLOTS,
        "-object",
        f"{backend},id=other,size={SIZE}",
        "-device",
        f"{driver},memdev=other",
    ]


def hugepages(_folder: Path) -> list[str]:
    return main_memory("memory-backend-memfd,hugetlb=on,hugetlbsize=2M,share=on")


def file_on_tmpfs(folder: Path) -> list[str]:
    return main_memory(f"memory-backend-file,mem-path={folder / 'ram'},share=on")


def split(_folder: Path) -> list[str]:
    """Half of it above 4 GiB, as guests of more than 2 GiB have it: one file, two places."""
    return ["-machine", f"max-ram-below-4g={SIZE // 2}"]


def second_backend(_folder: Path) -> list[str]:
    return dimm("memory-backend-memfd,share=on")


KINDS = {
    "hugepages": Kind(hugepages),
    "file": Kind(file_on_tmpfs),
    "split": Kind(split, HIGH),
    "second backend": Kind(second_backend, HIGH),
}


@pytest.fixture(scope="module", autouse=True)
def _bound() -> Iterator[None]:
    bound = command("bind", devices.NVME)
    assert not bound.returncode, bound.stderr
    yield
    command("unbind", devices.NVME)


@pytest.fixture
def huge_pages() -> Iterator[None]:
    setting = Path("/proc/sys/vm/nr_hugepages")
    before = setting.read_text()
    setting.write_text(f"{SIZE >> 21}")
    yield
    setting.write_text(before)


def direct(story: Story, *further: str) -> Seen:
    return _see(story, [*further, "-device", f"vfio-pci,host={devices.NVME},addr=4.0"])


def bridged(story: Story, *further: str) -> tuple[Seen, str]:
    """What is seen through the bridge; and the bridge's log."""
    with Bridge(devices.NVME) as serving:
        device = arguments([serving.socket(devices.NVME)])[-1]
        seen = _see(story, [*further, "-device", device.replace("{", '{"addr":"4.0",', 1)])
        assert serving.stop() == 0
        return seen, serving.log()


def _see(story: Story, further: list[str]) -> Seen:
    with Qtest(*further) as qtest:
        pci = PciHost(qtest).device(4)
        pci.enable()
        return story(qtest, Nvme(qtest, pci))


def reached(address: int) -> Story:
    """Whether the controller has its queues at *address* and writes who it is there, too."""

    def story(qtest: Qtest, nvme: Nvme) -> bool:
        nvme.start(address, address + PAGE)
        target = address + SIZE // 4
        try:
            return nvme.identify(target) == 0 and qtest.read(target, PAGE)[SERIAL] == NAME
        except FatalError:
            return False

    return story


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.usefixtures("huge_pages")
@pytest.mark.fidelity(devices.NVME, "memory")
def test_reached(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    further = kind.arguments(tmp_path)
    assert direct(reached(kind.address), *further)
    seen, log = bridged(reached(kind.address), *further)
    assert seen
    assert not trouble(log)


def from_read_only(qtest: Qtest, nvme: Nvme) -> Seen:
    """A command that lies there is executed; what it wants written there isn't."""
    nvme.start(HIGH, LOW)
    seen = [nvme.submit(), qtest.read(LOW + PAGE, PAGE)[SERIAL]]
    nvme.start(LOW + 2 * PAGE, LOW)
    nvme.identify(HIGH + PAGE)
    return [*seen, qtest.read(HIGH + PAGE, PAGE)]


@pytest.mark.fidelity(devices.NVME, "memory")
def test_read_only(tmp_path: Path) -> None:
    file = tmp_path / "ram"
    file.write_bytes(identify_command(LOW + PAGE))
    os.truncate(file, SIZE)
    backend = f"memory-backend-file,mem-path={file},readonly=on,share=on"
    further = ["-machine", "nvdimm=on", *dimm(backend, "nvdimm,unarmed=on")]
    seen, log = bridged(from_read_only, *further)
    assert seen == [0, NAME, bytes(PAGE)]
    assert seen == direct(from_read_only, *further)
    assert not trouble(log)


def plugging(qmp: Qmp) -> Story:
    def story(qtest: Qtest, nvme: Nvme) -> Seen:
        qmp.open()
        before = reached(HIGH)(qtest, nvme)
        qmp.command("object-add", qom_type="memory-backend-memfd", id="new", size=SIZE, share=True)
        qmp.command("device_add", driver="pc-dimm", id="dimm", memdev="new")
        plugged = reached(HIGH)(qtest, nvme)
        qmp.command("device_del", id="dimm")
        qtest.port_out(ACPI_SELECT, 4, 0)
        qtest.port_out(ACPI_CONTROL, 1, ACPI_EJECT)
        qmp.deleted("dimm")
        qmp.command("object-del", id="new")
        return [before, plugged, reached(HIGH)(qtest, nvme), reached(LOW)(qtest, nvme)]

    return story


@pytest.mark.fidelity(devices.NVME, "memory hot-plug")
def test_plugged_and_unplugged(tmp_path: Path) -> None:
    """What isn't there, or no more, is out of reach; what is plugged in is reached."""
    with Qmp(tmp_path) as qmp:
        seen, log = bridged(plugging(qmp), *SLOTS, *qmp.arguments)
    assert seen == [False, True, False, True]
    assert not trouble(log)
    with Qmp(tmp_path) as qmp:
        assert seen == direct(plugging(qmp), *SLOTS, *qmp.arguments)


# ---- Where the bridge can't do what vfio-pci does: docs/fidelity.md -----------------------------


def test_private_memory() -> None:
    """It has no file to share. The bridge says so once, and how to share it."""
    further = main_memory("memory-backend-ram")
    assert direct(reached(LOW), *further)
    seen, log = bridged(reached(LOW), *further)
    assert not seen
    (warning,) = trouble(log)
    assert "share=on" in warning


def test_a_private_copy_of_a_file(tmp_path: Path) -> None:
    """QEMU sends the file as if it were shared, and what the guest has written isn't in it."""
    further = main_memory(f"memory-backend-file,mem-path={tmp_path / 'ram'},share=off")
    assert direct(reached(LOW), *further)
    with pytest.raises(TimeoutError):
        bridged(reached(LOW), *further)


def test_a_file_that_cannot_be_pinned() -> None:
    """The kernel pins no page of a file on a disk. QEMU's vfio-pci ends; vfio-user-pci goes on."""
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:  # nosec B108 # a name of its own
        further = main_memory(f"memory-backend-file,mem-path={file.name},share=on")
        with pytest.raises(QtestError, match="Bad address"):
            direct(reached(LOW), *further)
        seen, log = bridged(reached(LOW), *further)
    assert not seen
    assert lines(log, " ERROR .*can't map .*Bad address")
