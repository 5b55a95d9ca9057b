# SPDX-License-Identifier: BSD-3-Clause
"""PCI devices in sysfs: what they are, what stands in the way of serving them, who drives them."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from tests.fake_sysfs import FakeSysfs
from vfio_user_bridge.errors import DeviceError, UsageError
from vfio_user_bridge.kernel import drivers, pci
from vfio_user_bridge.kernel.pci import PciDevice

NIC = "0000:01:10.1"
TWIN = "0000:01:10.2"
PORT = "0000:00:01.0"
PCI_BRIDGE, ISA_BRIDGE = 0x060400, 0x060100


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    sysfs = FakeSysfs(tmp_path / "sys")
    monkeypatch.setattr(drivers, "write", sysfs.write)
    return sysfs


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "run/drivers"


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
    assert why[1].startswith(f"{NIC} has no IOMMU group: enable the IOMMU")


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


# ---- Bind and unbind ------------------------------------------------------------------------


def bound(fake: FakeSysfs, state: Path) -> PciDevice:
    """A device whose driver igb was taken from it, with no more writes than that."""
    fake.device(NIC, driver="igb", group=12)
    fake.driver("vfio-pci")
    device = pci.find(NIC, fake.root)
    assert drivers.bind(device, state=state) == "igb"
    return device


def test_bind_and_unbind(fake: FakeSysfs, state: Path) -> None:
    device = bound(fake, state)
    assert device.driver == "vfio-pci"
    assert fake.writes == [
        (f"devices/{NIC}/driver_override", "vfio-pci"),
        (f"devices/{NIC}/driver/unbind", NIC),
        ("drivers_probe", NIC),
    ]
    fake.writes.clear()
    assert drivers.unbind(device, state=state) == "igb"
    assert device.driver == "igb"
    assert device.driver_override is None
    assert fake.writes == [
        (f"devices/{NIC}/driver_override", "\n"),
        (f"devices/{NIC}/driver/unbind", NIC),
        ("drivers_probe", NIC),
    ]
    assert not list(state.iterdir())


def test_binding_twice_keeps_the_first_driver(fake: FakeSysfs, state: Path) -> None:
    device = bound(fake, state)
    fake.writes.clear()
    assert drivers.bind(device, state=state) == "vfio-pci"
    assert fake.writes == []
    assert drivers.unbind(device, state=state) == "igb"


def test_bind_after_one_that_was_killed_half_way(fake: FakeSysfs, state: Path) -> None:
    device = bound(fake, state)
    fake.detach(NIC)
    drivers.bind(device, state=state)
    assert drivers.unbind(device, state=state) == "igb"


def test_no_driver_before_is_no_driver_after(fake: FakeSysfs, state: Path) -> None:
    fake.device(NIC, group=12)
    fake.driver("vfio-pci")
    device = pci.find(NIC, fake.root)
    assert drivers.bind(device, state=state) is None
    fake.natural[NIC] = "igb"
    fake.driver("igb")  # loaded meanwhile
    assert drivers.unbind(device, state=state) is None
    assert device.driver is None


def test_driver_override_is_put_back(fake: FakeSysfs, state: Path) -> None:
    path = fake.device(NIC, driver="igb", group=12)
    (path / "driver_override").write_text("igb\n")
    fake.driver("vfio-pci")
    device = pci.find(NIC, fake.root)
    drivers.bind(device, state=state)
    drivers.unbind(device, state=state)
    assert device.driver_override == "igb"


def test_unbind_what_something_else_bound(fake: FakeSysfs, state: Path) -> None:
    """vfio-pci since boot, by driverctl or a udev rule: nothing is remembered."""
    path = fake.device(NIC, driver="vfio-pci", group=12)
    (path / "driver_override").write_text("vfio-pci\n")
    fake.natural[NIC] = "igb"
    fake.driver("igb")
    assert drivers.unbind(pci.find(NIC, fake.root), state=state) == "igb"


def test_unbind_leaves_others_alone(fake: FakeSysfs, state: Path) -> None:
    device = bound(fake, state)
    fake.detach(NIC)
    fake.attach(NIC, "igb_uio")
    fake.writes.clear()
    assert drivers.unbind(device, state=state) == "igb_uio"
    assert fake.writes == []


def test_old_driver_does_not_come_back(fake: FakeSysfs, state: Path) -> None:
    device = bound(fake, state)
    fake.broken.add("igb")
    with pytest.raises(DeviceError, match="igb didn't take it back, it has no driver now"):
        drivers.unbind(device, state=state)
    fake.broken.clear()  # the operator has seen to it
    assert drivers.unbind(device, state=state) == "igb"


def test_vfio_pci_refuses(fake: FakeSysfs, state: Path) -> None:
    fake.device(NIC, driver="igb", group=12)
    fake.driver("vfio-pci")
    fake.broken.add("vfio-pci")
    device = pci.find(NIC, fake.root)
    with pytest.raises(DeviceError, match=f"{NIC}: vfio-pci doesn't take it; dmesg"):
        drivers.bind(device, state=state)
    assert device.driver == "igb"
    assert device.driver_override is None
    assert not list(state.iterdir())


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (errno.EPERM, "can't unbind it from igb: not permitted; run as root"),
        (errno.EACCES, "can't unbind it from igb: not permitted; run as root"),
        (errno.EROFS, "can't unbind it from igb: read-only here; run on the host itself"),
        (errno.EBUSY, "can't unbind it from igb: Device or resource busy; dmesg may have"),
    ],
)
def test_bind_fails(fake: FakeSysfs, state: Path, code: int, line: str) -> None:
    fake.device(NIC, driver="igb", group=12)
    fake.driver("vfio-pci")
    fake.errors[f"devices/{NIC}/driver/unbind"] = OSError(code, os.strerror(code))
    device = pci.find(NIC, fake.root)
    with pytest.raises(DeviceError) as failure:
        drivers.bind(device, state=state)
    assert str(failure.value).startswith(f"{NIC}: {line}")
    assert device.driver_override is None


def test_driver_does_not_let_go(fake: FakeSysfs, state: Path) -> None:
    fake.device(NIC, driver="nvidia", group=12)
    fake.driver("vfio-pci")
    fake.errors[f"devices/{NIC}/driver/unbind"] = TimeoutError()
    device = pci.find(NIC, fake.root)
    with pytest.raises(DeviceError, match="unbind it from nvidia: the kernel is still at it"):
        drivers.bind(device, state=state)


def test_device_goes_while_it_is_bound(fake: FakeSysfs, state: Path) -> None:
    fake.device(NIC, driver="igb", group=12)
    fake.driver("vfio-pci")
    device = pci.find(NIC, fake.root)
    fake.errors["drivers_probe"] = OSError(errno.ENODEV, "No such device")
    with pytest.raises(DeviceError, match="No such device"):
        drivers.bind(device, state=state)
    (fake.root / "bus/pci/devices" / NIC).unlink()
    with pytest.raises(DeviceError, match="there is no such PCI device"):
        drivers.bind(device, state=state)


def test_what_cannot_be_bound(fake: FakeSysfs, state: Path) -> None:
    fake.device(PORT, driver="pcieport", group=1, class_code=PCI_BRIDGE, header_type=1)
    fake.device(NIC, driver="igb")
    with pytest.raises(DeviceError, match="is a PCI bridge"):
        drivers.bind(pci.find(PORT, fake.root), state=state)
    with pytest.raises(DeviceError, match="has no IOMMU group"):
        drivers.bind(pci.find(NIC, fake.root), state=state)
    assert fake.writes == []


def test_no_vfio_module(fake: FakeSysfs, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.device(NIC, driver="igb", group=12)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DeviceError, match="no vfio-pci module in this kernel: modprobe is not in"):
        drivers.bind(pci.find(NIC, fake.root), state=state)
    assert fake.writes == []


def test_vfio_module_is_loaded(
    fake: FakeSysfs, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.device(NIC, driver="igb", group=12)
    modprobe = tmp_path / "bin/modprobe"
    modprobe.parent.mkdir()
    modprobe.write_text(f'#!/bin/sh\nexec mkdir "{fake.root}/bus/pci/drivers/$1"\n')
    modprobe.chmod(0o755)
    monkeypatch.setenv("PATH", f"{modprobe.parent}:/usr/bin:/bin")
    assert drivers.bind(pci.find(NIC, fake.root), state=state) == "igb"


def test_unbind_refuses_while_in_use(
    fake: FakeSysfs, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = bound(fake, state)
    node = tmp_path / "dev/vfio/12"
    node.parent.mkdir(parents=True)
    user = node.open("wb")  # is what /proc shows
    real = os.open

    def busy(path: Path, flags: int) -> int:
        if path == node:
            raise OSError(errno.EBUSY, "Device or resource busy")
        return real(path, flags)

    monkeypatch.setattr(os, "open", busy)
    with user, pytest.raises(DeviceError) as failure:
        drivers.unbind(device, state=state, dev=node.parent)
    assert "IOMMU group 12 is in use by" in str(failure.value)
    assert f"(pid {os.getpid()}); stop that first" in str(failure.value)
    assert device.driver == "vfio-pci"


# ---- The write itself -----------------------------------------------------------------------


def test_write(tmp_path: Path) -> None:
    path = tmp_path / "unbind"
    path.touch()
    drivers.write(path, NIC)
    assert path.read_text() == NIC


def test_write_tells_the_errno(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        drivers.write(tmp_path / "missing/unbind", NIC)


def test_write_gives_up(tmp_path: Path) -> None:
    path = tmp_path / "unbind"
    os.mkfifo(path)  # whoever opens it to write waits for a reader
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        drivers.write(path, NIC, patience=0.05)
    assert time.monotonic() - start < 5
    path.read_text()  # lets the child go
