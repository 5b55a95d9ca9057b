# SPDX-License-Identifier: BSD-3-Clause
"""Giving a device to vfio-pci and back: what is written, what is remembered, what can go wrong."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from tests.fake_sysfs import FakeSysfs
from vfio_user_bridge.errors import DeviceError
from vfio_user_bridge.kernel import drivers, pci
from vfio_user_bridge.kernel.pci import PciDevice

NIC = "0000:01:10.1"
PORT = "0000:00:01.0"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    sysfs = FakeSysfs(tmp_path / "sys")
    monkeypatch.setattr(drivers, "write", sysfs.write)
    return sysfs


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "run/drivers"


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


def test_unbind_what_sysfs_has_unbound(fake: FakeSysfs, state: Path) -> None:
    device = bound(fake, state)
    fake.detach(NIC)
    assert drivers.unbind(device, state=state) == "igb"
    assert device.driver_override is None
    assert not list(state.iterdir())


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
    fake.device(PORT, driver="pcieport", group=1, class_code=0x060400, header_type=1)
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
