# SPDX-License-Identifier: BSD-3-Clause
"""Giving a PCI device to vfio-pci, and back to the driver that had it.

The way is driver_override, which concerns this one device: new_id would take its twins as well.
What a device had before is a file named after it in the *state* folder, which lasts until reboot,
as the bindings do. A driver that was remembered stays so until the device is given back.
"""

from __future__ import annotations

import errno
import os
import select
from dataclasses import dataclass
from pathlib import Path

from ..errors import BridgeError, DeviceError
from .pci import PciDevice, gone

VFIO_PCI = "vfio-pci"
STATE = Path("/run/vfio-user-bridge/drivers")
DEV_VFIO = Path("/dev/vfio")

#: Seconds until a driver that doesn't let go of its device is called stuck. NVMe and network
#: drivers take up to a few.
PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Before:
    """What a device had before: its driver and its driver_override, each None for none."""

    driver: str | None
    override: str | None


def bind(device: PciDevice, *, state: Path = STATE) -> str | None:
    """Take *device* from its driver and give it to vfio-pci, loading that if need be.

    Gives the driver that had it. With a VFIO driver it is left alone. If vfio-pci doesn't take the
    device, its driver is put back.

    :raise DeviceError: it can't be assigned, or the kernel said no
    """
    driver = device.driver
    if device.under_vfio:
        return driver
    if not device.is_endpoint:
        raise DeviceError(f"{device.bdf} is a PCI bridge: only endpoints can be bound to vfio-pci")
    if device.iommu_group is None:
        # vfio-pci would refuse it with EINVAL, after its driver has let go.
        raise DeviceError(f"{device.bdf} has no IOMMU group: enable the IOMMU first")
    _load_vfio_pci(device.sysfs)
    before = _remember(device, state)
    try:
        _set_override(device, VFIO_PCI)
        _unbind(device)
        _probe(device)
        if device.driver != VFIO_PCI:
            raise DeviceError(f"{device.bdf}: vfio-pci doesn't take it; dmesg has the reason")
    except BridgeError:
        _undo(device, before, state)
        raise
    return driver


def unbind(device: PciDevice, *, state: Path = STATE, dev: Path = DEV_VFIO) -> str | None:
    """Take *device* from vfio-pci and let the driver have it that had it before.

    Gives the driver that it has now. One that has another driver is left alone; one that was taken
    from vfio-pci by way of sysfs, as it may be while it is served, gets its driver as well.

    :raise DeviceError: it is in use, the kernel said no, or the old driver didn't take it
    """
    before = _recall(device, state)
    driver = device.driver
    if device.under_vfio:
        _refuse_in_use(device, dev)
    elif driver or not before:  # someone else gave it a driver, or wants it without
        _forget(device, state)
        return driver
    _set_override(device, before.override if before else None)
    _unbind(device)
    if before is None or before.driver:
        _probe(device)
    now = device.driver
    if before and now != before.driver:
        has = f"is bound to {now}" if now else "has no driver"
        raise DeviceError(
            f"{device.bdf}: {before.driver} didn't take it back, it {has} now; load {before.driver}"
            " and try again, or look into dmesg"
        )
    _forget(device, state)
    return now


# ---- What was before ------------------------------------------------------------------------


def _remember(device: PciDevice, state: Path) -> Before:
    """Note the driver, unless the device has none because an earlier attempt ended half-way."""
    before = _recall(device, state)
    if before and device.driver is None:
        return before
    override = device.driver_override
    before = Before(device.driver, None if override == VFIO_PCI else override)
    try:
        state.mkdir(parents=True, exist_ok=True)
        (state / device.bdf).write_text(f"{before.driver or ''}\n{before.override or ''}\n")
    except OSError as error:
        raise _explained(device, f"note its driver in {state}", error) from None
    return before


def _recall(device: PciDevice, state: Path) -> Before | None:
    try:
        driver, override = (state / device.bdf).read_text().splitlines()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _explained(device, f"read its old driver in {state}", error) from None
    except ValueError:  # cut short by a full disk or a crash
        return None
    return Before(driver or None, override or None)


def _forget(device: PciDevice, state: Path) -> None:
    (state / device.bdf).unlink(missing_ok=True)


def _undo(device: PciDevice, before: Before, state: Path) -> None:
    """After a failure, which is what the operator hears of; this does what it can."""
    try:
        _set_override(device, before.override)
        if device.driver is None and before.driver:
            _probe(device)
        if device.driver == before.driver:
            _forget(device, state)
    except BridgeError:
        return


# ---- What the kernel is told ----------------------------------------------------------------


def _load_vfio_pci(sysfs: Path) -> None:
    driver = sysfs / "bus/pci/drivers" / VFIO_PCI
    if driver.exists():
        return
    import subprocess  # costs start-up time, and most often isn't needed

    try:
        done = subprocess.run(["modprobe", VFIO_PCI], capture_output=True, text=True, check=False)
        reason = " ".join(done.stderr.split())
    except FileNotFoundError:
        reason = "modprobe is not installed"
    if not driver.exists():
        raise DeviceError(f"there is no vfio-pci module in this kernel: {reason or 'unknown why'}")


def _set_override(device: PciDevice, driver: str | None) -> None:
    # A lone newline is how driver_set_override() is told "none".
    _tell(device, "set its driver_override", device.path / "driver_override", driver or "\n")


def _unbind(device: PciDevice) -> None:
    if driver := device.driver:
        _tell(device, f"unbind it from {driver}", device.path / "driver/unbind", device.bdf)
        if device.driver:
            raise DeviceError(f"{device.bdf}: {driver} doesn't let go of it; dmesg has the reason")


def _probe(device: PciDevice) -> None:
    """Ask the bus for a driver. Whether one took the device is the caller's to check."""
    try:
        write(device.sysfs / "bus/pci/drivers_probe", device.bdf)
    except OSError as error:
        # drivers_probe_store() makes EINVAL of whatever a driver's probe said.
        if error.errno != errno.EINVAL:
            raise _explained(device, "look for its driver", error) from None


def _tell(device: PciDevice, what: str, path: Path, text: str) -> None:
    try:
        write(path, text)
    except OSError as error:
        raise _explained(device, what, error) from None


def _explained(device: PciDevice, what: str, error: OSError) -> DeviceError:
    if isinstance(error, TimeoutError):
        return DeviceError(
            f"{device.bdf}: can't {what}: the kernel is still at it after {PATIENCE:.0f} s;"
            " stop what uses the device and try again"
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        return DeviceError(f"{device.bdf}: can't {what}: not permitted; run as root")
    if error.errno == errno.EROFS:
        return DeviceError(f"{device.bdf}: can't {what}: read-only here; run on the host itself")
    if not device.path.exists():
        return gone(device.bdf)
    return DeviceError(f"{device.bdf}: can't {what}: {error.strerror}; dmesg may have the reason")


def write(path: Path, text: str, patience: float = PATIENCE) -> None:
    """Write *text* to a sysfs file, for at most *patience* seconds.

    A child does it. A driver that waits for its device's last user keeps the writer in the kernel,
    deaf to signals, and it had better not be the operator's terminal.

    :raise TimeoutError: the child is still at it, and goes on
    :raise OSError: what the kernel said
    """
    child = os.fork()
    if child == 0:
        code = errno.EIO
        try:
            code = _write_here(path, text)
        finally:
            os._exit(code)
    watch = os.pidfd_open(child)
    try:
        if not select.select([watch], [], [], patience)[0]:
            raise TimeoutError
    finally:
        os.close(watch)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(abs(code), os.strerror(abs(code)), str(path))


def _write_here(path: Path, text: str) -> int:
    """The errno that fits into an exit status."""
    try:
        with path.open("wb", buffering=0) as file:
            file.write(text.encode())
    except OSError as error:
        return min(error.errno or errno.EIO, 255)
    return 0


def _refuse_in_use(device: PciDevice, dev: Path) -> None:
    """vfio_unregister_group_dev() would wait until the device's user has closed it, for ever.

    The group's other devices count too: while the group is a user's, no host driver may have any.
    """
    node = dev / str(device.iommu_group)
    try:
        os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EBUSY:
            return
        users = " and ".join(holders(node)) or "a process that can't be seen from here"
        raise DeviceError(
            f"{device.bdf}: IOMMU group {device.iommu_group} is in use by {users}; stop that first"
        ) from None


def holders(node: Path) -> list[str]:
    """The processes that have *node* open, as far as /proc shows them."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if any(os.readlink(fd) == str(node) for fd in (process / "fd").iterdir()):  # noqa: PTH115
                found.append(f"{(process / 'comm').read_text().strip()} (pid {process.name})")
        except OSError:  # no process, ended, or not ours to look into
            continue
    return found
