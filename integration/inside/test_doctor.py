# SPDX-License-Identifier: BSD-3-Clause
"""What `doctor` says of a host with an IOMMU, and that what it says mends what it found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from integration import devices
from vfio_user_bridge.kernel import pci

from .bridge import CHECKOUT, COMMAND, Bridge, bind, command
from .comparison import virtual_function

NOBODY = ("setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups")
HUGEPAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")

Finding = dict[str, Any]


class Doctor:
    """Asked with *arguments*, by *prefix*."""

    def __init__(self, *arguments: str, prefix: Sequence[str] = ()) -> None:
        done = subprocess.run(
            (*prefix, *COMMAND, "doctor", "--json", *arguments),
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=False,
        )
        self.status = done.returncode
        self.findings: list[Finding] = json.loads(done.stdout)

    def levels(self, bdf: str | None = None) -> dict[str, str]:
        """By check: those of a device, or those of the host."""
        return {f["check"]: f["level"] for f in self.findings if f["device"] == bdf}

    def one(self, check: str) -> Finding:
        (found,) = (finding for finding in self.findings if finding["check"] == check)
        return found


def do(finding: Finding) -> None:
    """What the finding says, as it says it, in root's shell."""
    name = f'vfio-user-bridge() {{ {sys.executable} -m vfio_user_bridge "$@"; }}\n'
    assert finding["command"]
    subprocess.run(["bash", "-c", name + finding["command"]], cwd=CHECKOUT, check=True)


@pytest.fixture
def nvme() -> Iterator[str]:
    """A device that the host has."""
    assert not command("unbind", devices.NVME_PORT).returncode
    yield devices.NVME_PORT
    bind(devices.NVME_PORT)


def test_a_device_that_is_bound(igb: str) -> None:
    doctor = Doctor(igb, "--memory", "512M", "--socket-dir", "/run")
    assert doctor.status == 0
    assert set(doctor.levels(igb).values()) == {"ok"}
    assert "problem" not in doctor.levels().values()
    for check in ("iommu", "interrupt-remapping", "dev-vfio", "qemu", "socket-dir", "memory"):
        assert doctor.one(check)["level"] == "ok"
    assert "Intel VT-d" in doctor.one("iommu")["text"]
    assert "can be reset: flr" in doctor.one("device-reset")["text"]


def test_a_device_that_is_not_bound(nvme: str) -> None:
    doctor = Doctor(nvme)
    assert doctor.status == 1
    assert doctor.one("device")["command"] == f"vfio-user-bridge bind {nvme}"
    do(doctor.one("device"))
    assert Doctor(nvme).status == 0


def test_a_group_that_is_half_bound() -> None:
    first, second = devices.E1000_PORT_PAIR
    assert not command("unbind", first, second).returncode
    bind(first)
    subprocess.run(("modprobe", "e1000"), check=True)
    try:
        doctor = Doctor(first)
        assert doctor.status == 1
        assert f"{second} is bound to e1000" in doctor.one("device")["text"]
        do(doctor.one("device"))
    finally:
        subprocess.run(("modprobe", "--remove", "e1000"), check=True)
    doctor = Doctor(first)
    assert doctor.status == 0
    assert f"{second} (vfio-pci)" in doctor.one("device")["text"]
    assert doctor.levels(first)["device-reset"] == "warning"  # only the bus


def test_without_a_name_those_that_are_bound(igb: str) -> None:
    named = {finding["device"] for finding in Doctor().findings} - {None}
    bound = {device.bdf for device in pci.all_devices() if device.under_vfio}
    assert igb in named
    assert named == bound


def test_a_virtual_function_answers() -> None:
    """Though its vendor and device read as all ones."""
    with virtual_function():
        config = Path("/sys/bus/pci/devices", devices.IGB_VF, "config").read_bytes()
        assert config[:4] == b"\xff" * 4
        assert Doctor(devices.IGB_VF).one("device-answers")["level"] == "ok"


def test_a_device_that_is_served(igb: str) -> None:
    with Bridge(igb) as serving:
        found = Doctor(igb).one("device-group")
        assert found["level"] == "warning"
        assert f"(pid {serving.process.pid})" in found["text"]
    assert Doctor(igb).one("device-group")["level"] == "ok"


def test_who_is_not_root(igb: str) -> None:
    node = Path(f"/dev/vfio/{pci.find(igb).iommu_group}")
    Path("/dev/vfio/vfio").chmod(0o600)
    try:
        doctor = Doctor(igb, prefix=NOBODY)
        assert doctor.status == 1
        for check in ("dev-vfio", "device-group"):
            assert "nobody may not open" in doctor.one(check)["text"]
            do(doctor.one(check))
        doctor = Doctor(igb, prefix=NOBODY)
        assert doctor.status == 0
        assert doctor.one("device-group")["level"] == "ok"
    finally:
        Path("/dev/vfio/vfio").chmod(0o666)
        subprocess.run(("chown", "root", node), check=True)


def test_locked_memory() -> None:
    limited = ("prlimit", "--memlock=8388608", *NOBODY)
    doctor = Doctor("--memory", "256M", prefix=limited)
    found = doctor.one("locked-memory")
    assert (doctor.status, found["level"]) == (1, "problem")
    assert "lock 8 MiB, and a guest of 256 MiB" in found["text"]
    mended = ("bash", "-c", f'ulimit -l 8192; {found["command"]}; "$@"', "bash", *NOBODY)
    assert Doctor("--memory", "256M", prefix=mended).one("locked-memory")["level"] == "ok"


def test_hugepages() -> None:
    HUGEPAGES.write_text("8")
    try:
        found = Doctor("--memory", "64M").one("hugepages")
        assert found["level"] == "warning"
        do(found)
        assert int(HUGEPAGES.read_text()) == 32
        assert Doctor("--memory", "64M").one("hugepages")["level"] == "ok"
    finally:
        HUGEPAGES.write_text("0")
