# SPDX-License-Identifier: BSD-3-Clause
"""What `list` shows: names, the table, JSON, and what the host itself uses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.fake_sysfs import FakeSysfs
from vfio_user_bridge.inventory import Entry, as_json, entry, parts
from vfio_user_bridge.kernel import pci
from vfio_user_bridge.kernel.inuse import Use, uses
from vfio_user_bridge.pci_ids import PciIds

NIC, DISK, PORT = "0000:01:10.1", "0000:02:00.0", "0000:00:01.0"

IDS = b"""\
# A comment
8086  Intel Corporation
\t10ca  82576 Virtual Function
# One between devices
\t10cb  Something else
\t\t1af4 10ca  A subsystem, not a device
1b36  Red Hat, Inc.
\t0010  QEMU NVM Express Controller
ffff  Illegal Vendor ID

C 01  Mass storage controller
\t08  Non-Volatile memory controller
\t\t02  NVM Express
C 02  Network controller
\t00  Ethernet controller"""
NAMES = PciIds(IDS)


@pytest.fixture
def fake(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path / "sys")


def entries(fake: FakeSysfs, names: PciIds = NAMES) -> list[Entry]:
    return [entry(device, names) for device in pci.all_devices(fake.root)]


# ---- pci.ids --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vendor", "device", "name"),
    [
        (0x8086, 0x10CA, "82576 Virtual Function"),
        (0x8086, 0x10CB, "Something else"),
        (0x1B36, 0x0010, "QEMU NVM Express Controller"),
        (0x8086, 0x0010, None),  # the next vendor's
        (0x8086, 0x1AF4, None),  # a subsystem
        (0x1234, 0x11E8, None),
        (0xFFFF, 0x0010, None),
    ],
)
def test_device_name(vendor: int, device: int, name: str | None) -> None:
    assert NAMES.device(vendor, device) == name


def test_vendor_name() -> None:
    assert NAMES.vendor(0x8086) == "Intel Corporation"
    assert NAMES.vendor(0x10CA) is None


@pytest.mark.parametrize(
    ("class_code", "name"),
    [
        (0x020000, "Ethernet controller"),  # the file's last line, with no newline after it
        (0x010802, "Non-Volatile memory controller"),
        (0x018000, "Mass storage controller"),
        (0x00FF00, None),
    ],
)
def test_class_name(class_code: int, name: str | None) -> None:
    assert NAMES.class_name(class_code) == name


def test_first_file_that_exists(tmp_path: Path) -> None:
    (tmp_path / "pci.ids").write_bytes(IDS)
    names = PciIds.load([tmp_path / "missing", tmp_path / "pci.ids"])
    assert names.vendor(0x8086) == "Intel Corporation"
    assert PciIds.load([tmp_path / "missing"]).vendor(0x8086) is None


# ---- Table and JSON -------------------------------------------------------------------------


@pytest.fixture
def machine(fake: FakeSysfs) -> FakeSysfs:
    fake.device(PORT, driver="pcieport", group=1, class_code=0x060400, header_type=1)
    fake.device(NIC, driver="vfio-pci", group=12)
    fake.device(
        DISK, driver="nvme", group=7, ids=(0x1B36, 0x10), class_code=0x010802, reset_method="flr"
    )
    return fake


def lines(shown: Sequence[object]) -> list[str]:
    return "\n".join(map(str, shown)).splitlines()


def test_table(machine: FakeSysfs) -> None:
    assert lines(parts(entries(machine))) == [
        "ADDRESS       GROUP  DRIVER    SERVE   DEVICE",
        "0000:00:01.0      1  pcieport  bridge  class 0604: Intel Corporation 82576 Virtual"
        " Function",
        "0000:01:10.1     12  vfio-pci  yes     Ethernet controller: Intel Corporation 82576"
        " Virtual Function",
        "0000:02:00.0      7  nvme      bind    Non-Volatile memory controller: Red Hat, Inc. QEMU"
        " NVM Express Controller",
        "",
        "bind: 0000:02:00.0 is bound to nvme; bind to vfio-pci: vfio-user-bridge bind 0000:02:00.0",
    ]


def test_numbers_without_names(machine: FakeSysfs) -> None:
    (titles,) = [e.title for e in entries(machine, PciIds(b"")) if e.bdf == NIC]
    assert titles == "class 0200: 8086:10ca"


def test_vendor_without_the_device(fake: FakeSysfs) -> None:
    fake.device(NIC, ids=(0x8086, 0x9999))
    (only,) = entries(fake)
    assert only.title == "Ethernet controller: Intel Corporation 8086:9999"


def test_warnings_stand_below_the_table(machine: FakeSysfs) -> None:
    disk = entry(pci.find(DISK, machine.root), NAMES, [Use("nvme0n1 is mounted on /", vital=True)])
    assert lines(parts([disk]))[-1] == f"in use: {DISK}: nvme0n1 is mounted on /"


def test_json(machine: FakeSysfs) -> None:
    found = {device["bdf"]: device for device in json.loads(as_json(entries(machine)))}
    assert found[DISK] == {
        "bdf": "0000:02:00.0",
        "class_code": "010802",
        "class_name": "Non-Volatile memory controller",
        "vendor": "1b36",
        "vendor_name": "Red Hat, Inc.",
        "device": "0010",
        "device_name": "QEMU NVM Express Controller",
        "subsystem_vendor": "1af4",
        "subsystem_device": "1100",
        "iommu_group": 7,
        "numa_node": None,
        "driver": "nvme",
        "reset_methods": ["flr"],
        "assignable": False,
        "todo": "bind",
        "reason": f"{DISK} is bound to nvme; bind to vfio-pci: vfio-user-bridge bind {DISK}",
        "warnings": [],
    }
    assert found[NIC]["assignable"] is True
    assert found[NIC]["reason"] is None


# ---- What the host uses ---------------------------------------------------------------------


def proc(tmp_path: Path, *mounts: str, swaps: str = "") -> Path:
    """A /proc with these lines in mountinfo, the first three fields left out, and in swaps."""
    root = tmp_path / "proc"
    (root / "self").mkdir(parents=True)
    (root / "self/mountinfo").write_text("".join(f"22 27 {line}\n" for line in mounts))
    (root / "swaps").write_text(f"Filename Type Size Used Priority\n{swaps}")
    return root


ROOT = "254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw"


def test_mounted_disk(fake: FakeSysfs, tmp_path: Path) -> None:
    fake.device(DISK)
    fake.disk("vda", "254:0", DISK)
    fake.disk("vdb", "254:16", DISK)
    found = uses(fake.root, proc(tmp_path, ROOT, ROOT.replace(" / / ", " /usr /mnt ")))
    assert found == {DISK: [Use("vda is mounted on /", vital=True)]}


def test_disk_behind_a_bridge(fake: FakeSysfs, tmp_path: Path) -> None:
    fake.device(PORT)
    fake.device(DISK, parent=f"pci0000:00/{PORT}")
    fake.disk("vda", "254:0", DISK)
    assert list(uses(fake.root, proc(tmp_path, ROOT))) == [DISK]


def test_logical_volume(fake: FakeSysfs, tmp_path: Path) -> None:
    fake.device(DISK)
    fake.disk("nvme0n1p2", "259:2", DISK, holder="dm-0")
    fake.disk("dm-0", "254:0", "", holder=None)
    found = uses(fake.root, proc(tmp_path, ROOT))
    assert found == {DISK: [Use("nvme0n1p2 is mounted on /", vital=True)]}


def test_btrfs_is_found_by_its_name(fake: FakeSysfs, tmp_path: Path) -> None:
    fake.device(DISK)
    fake.disk("nvme0n1", "259:0", DISK)
    mounts = proc(tmp_path, "0:31 /@ / rw - btrfs /dev/nvme0n1 rw", "0:5 / /dev rw - devtmpfs udev")
    assert uses(fake.root, mounts) == {DISK: [Use("nvme0n1 is mounted on /", vital=True)]}


def test_shared_nvme_namespace(fake: FakeSysfs, tmp_path: Path) -> None:
    fake.device(DISK)
    fake.disk("nvme0c1n1", "", DISK)
    fake.disk("nvme0n1", "259:0", "")
    found = uses(fake.root, proc(tmp_path, "259:0 / / rw - ext4 /dev/nvme0n1 rw"))
    assert found == {DISK: [Use("nvme0n1 is mounted on /", vital=True)]}


def test_swap(fake: FakeSysfs, tmp_path: Path) -> None:
    fake.device(DISK)
    fake.disk("vda", "254:0", DISK)
    found = uses(fake.root, proc(tmp_path, swaps="/dev/vda partition 1048572 0 -2\n"))
    assert found == {DISK: [Use("vda is swap space", vital=True)]}


def test_network_link(fake: FakeSysfs, tmp_path: Path) -> None:
    fake.device(NIC)
    fake.link("eth0", NIC, "up")
    fake.link("eth1", NIC, "down")
    fake.link("lo", "", "up")
    assert uses(fake.root, proc(tmp_path)) == {NIC: [Use("eth0 is up", vital=False)]}
