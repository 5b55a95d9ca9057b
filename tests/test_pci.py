# SPDX-License-Identifier: BSD-3-Clause
"""PCI devices in sysfs: what they are, and what stands in the way of serving them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fake_sysfs import FakeSysfs
from vfio_user_bridge.errors import DeviceError, UsageError
from vfio_user_bridge.kernel import pci
from vfio_user_bridge.kernel.pci import PciDevice

NIC = "0000:01:10.1"
TWIN = "0000:01:10.2"
PORT = "0000:00:01.0"
PCI_BRIDGE, ISA_BRIDGE = 0x060400, 0x060100


@pytest.fixture
def fake(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path / "sys")


# ---- Addresses and attributes ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bdf"),
    [
        ("0000:01:10.1", "0000:01:10.1"),
        ("01:10.1", "0000:01:10.1"),
        ("AF:1F.7", "0000:af:1f.7"),
        ("10000:E1:00.0", "10000:e1:00.0"),  # Intel VMD numbers its domains from 0x10000
    ],
)
def test_address(text: str, bdf: str) -> None:
    assert pci.parse_bdf(text) == bdf


@pytest.mark.parametrize(
    "text",
    ["", "edu", "1:10.1", "01:20.0", "01:10.8", "01:10", "000:01:10.1", "01:10.1 ", "../../etc"],
)
def test_no_address(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a PCI address: write it as"):
        pci.parse_bdf(text)


def test_attributes(fake: FakeSysfs) -> None:
    fake.device(NIC, driver="igb", group=12, reset_method="flr pm bus")
    device = pci.find(NIC, fake.root)
    assert (device.vendor, device.device, device.subsystem) == (0x8086, 0x10CA, (0x1AF4, 0x1100))
    assert (device.class_code, device.driver, device.iommu_group) == (0x020000, "igb", 12)
    assert device.reset_methods == ("flr", "pm", "bus")
    assert device.numa_node is None
    assert device.driver_override is None
    assert device.is_endpoint
    assert not device.is_bridge
    assert not device.under_vfio


def test_a_device_is_read_anew(fake: FakeSysfs) -> None:
    fake.device(NIC, driver="igb")
    device = pci.find(NIC, fake.root)
    fake.detach(NIC)
    assert device.driver is None


def test_multifunction_bit_is_no_bridge(fake: FakeSysfs) -> None:
    fake.device(NIC, header_type=0x80)
    fake.device(PORT, header_type=0x81)
    assert pci.find(NIC, fake.root).is_endpoint
    assert not pci.find(PORT, fake.root).is_endpoint


def test_no_iommu_group_of_vfio_is_none(fake: FakeSysfs) -> None:
    fake.device(NIC, group=0)
    (fake.root / "kernel/iommu_groups/0/name").write_text("vfio-noiommu\n")
    assert pci.find(NIC, fake.root).iommu_group is None


def test_gone(fake: FakeSysfs) -> None:
    with pytest.raises(DeviceError, match=f"{NIC}: there is no such PCI device"):
        pci.find(NIC, fake.root)
    for attribute in ("vendor", "driver", "is_endpoint", "iommu_group"):
        with pytest.raises(DeviceError, match="no such PCI device"):
            getattr(PciDevice(NIC, fake.root), attribute)


def test_all_in_order(fake: FakeSysfs) -> None:
    for bdf in ("10000:00:00.0", TWIN, "0000:00:02.0", NIC):
        fake.device(bdf)
    found = [device.bdf for device in pci.all_devices(fake.root)]
    assert found == ["0000:00:02.0", NIC, TWIN, "10000:00:00.0"]


# ---- Groups ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "offends"),
    [
        (None, False),
        ("vfio-pci", False),
        ("mlx5_vfio_pci", False),
        ("pci-stub", False),
        ("pcieport", False),
        ("snd_hda_intel", True),
        ("pci-pf-stub", True),  # uses the kernel's DMA as far as the kernel knows
    ],
)
def test_offenders(fake: FakeSysfs, driver: str | None, offends: bool) -> None:
    fake.device(NIC, driver="vfio-pci", group=12)
    fake.device(TWIN, driver=driver, group=12)
    fake.device("0000:02:00.0", driver="nvme", group=13)
    assert [d.bdf for d in pci.offenders(12, fake.root)] == ([TWIN] if offends else [])


def test_endpoints_of_a_group(fake: FakeSysfs) -> None:
    fake.device(PORT, driver="pcieport", group=12, class_code=PCI_BRIDGE, header_type=1)
    fake.device("0000:00:1f.0", driver="lpc_ich", group=12, class_code=ISA_BRIDGE)
    fake.device(NIC, driver="igb", group=12)
    fake.device(TWIN, group=12)
    (fake.root / "kernel/iommu_groups/12/devices/arm-smmu.0").mkdir()  # of another bus
    assert [d.bdf for d in pci.group_devices(12, fake.root)] == [PORT, "0000:00:1f.0", NIC, TWIN]
    assert [d.bdf for d in pci.group_endpoints(12, fake.root)] == [NIC, TWIN]


def obstacle(fake: FakeSysfs, bdf: str = NIC) -> tuple[str, str] | None:
    why = pci.obstacle(pci.find(bdf, fake.root))
    return (why.word, why.line) if why else None


def test_nothing_in_the_way(fake: FakeSysfs) -> None:
    fake.device(PORT, driver="pcieport", group=12, class_code=PCI_BRIDGE, header_type=1)
    fake.device(NIC, driver="vfio-pci", group=12)
    fake.device(TWIN, group=12)
    assert obstacle(fake) is None


def test_bridge(fake: FakeSysfs) -> None:
    fake.device(PORT, driver="pcieport", group=1, class_code=PCI_BRIDGE, header_type=1)
    assert obstacle(fake, PORT) == ("bridge", f"{PORT} is a bridge, which the host keeps")


def test_isa_bridge(fake: FakeSysfs) -> None:
    fake.device("0000:00:1f.0", group=1, class_code=ISA_BRIDGE)
    why = obstacle(fake, "0000:00:1f.0")
    assert why
    assert why[0] == "bridge"


def test_isa_bridge_that_someone_insists_on(fake: FakeSysfs) -> None:
    fake.device("0000:00:1f.0", driver="vfio-pci", group=1, class_code=ISA_BRIDGE)
    assert obstacle(fake, "0000:00:1f.0") is None


def test_nvswitch_is_a_device_like_others(fake: FakeSysfs) -> None:
    fake.device(NIC, driver="vfio-pci", group=12, class_code=0x068000)
    assert not pci.find(NIC, fake.root).is_bridge
    assert [d.bdf for d in pci.group_endpoints(12, fake.root)] == [NIC]
    assert obstacle(fake) is None


def test_no_group(fake: FakeSysfs) -> None:
    fake.device(NIC, driver="vfio-pci")
    why = obstacle(fake)
    assert why
    assert why[0] == "no IOMMU"
    assert why[1].startswith(f"{NIC} has no IOMMU group; enable the IOMMU")


def test_bound_to_a_host_driver(fake: FakeSysfs) -> None:
    fake.device(NIC, driver="igb", group=12)
    line = f"{NIC} is bound to igb; bind to vfio-pci: vfio-user-bridge bind {NIC}"
    assert obstacle(fake) == ("bind", line)


def test_bound_to_nothing(fake: FakeSysfs) -> None:
    fake.device(NIC, group=12)
    line = f"{NIC} has no driver; bind to vfio-pci: vfio-user-bridge bind {NIC}"
    assert obstacle(fake) == ("bind", line)


def test_group_not_viable(fake: FakeSysfs) -> None:
    fake.device(NIC, driver="vfio-pci", group=12)
    fake.device(TWIN, driver="snd_hda_intel", group=12)
    line = (
        f"IOMMU group 12 is not viable: {TWIN} is bound to snd_hda_intel;"
        f" bind to vfio-pci too: vfio-user-bridge bind --group {NIC}"
    )
    assert obstacle(fake) == ("bind --group", line)


def test_all_of_the_group_bound_to_host_drivers(fake: FakeSysfs) -> None:
    fake.device(NIC, driver="igb", group=12)
    fake.device(TWIN, driver="snd_hda_intel", group=12)
    line = (
        f"{NIC} is bound to igb and in its IOMMU group 12 {TWIN} is bound to snd_hda_intel;"
        f" bind to vfio-pci: vfio-user-bridge bind --group {NIC}"
    )
    assert obstacle(fake) == ("bind --group", line)


def test_group_with_a_bridge_that_binding_wont_free(fake: FakeSysfs) -> None:
    fake.device("0000:00:1f.0", driver="lpc_ich", group=12, class_code=ISA_BRIDGE)
    fake.device("0000:00:1f.3", driver="vfio-pci", group=12)
    why = obstacle(fake, "0000:00:1f.3")
    assert why
    assert why[0] == "group"
    assert "0000:00:1f.0, a bridge that lpc_ich drives" in why[1]
