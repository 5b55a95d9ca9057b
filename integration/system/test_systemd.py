# SPDX-License-Identifier: BSD-3-Clause
"""The units under systemd: what they may, and how bridges start, end and come back."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration import devices, page
from integration.edu_script import (
    BUFFER,
    IRQ_ACKNOWLEDGE,
    IRQ_RAISE,
    MEMORY,
    MESSAGE,
    RUN,
    TO_MEMORY,
    Edu,
    Seen,
    see,
)
from integration.inside import edu
from integration.inside.bridge import CONFIG
from integration.inside.test_dma import PAGE, TEXT
from tests import scrapes
from tests.client import GONE
from vfio_user_bridge import qemu
from vfio_user_bridge.device import PciRegion
from vfio_user_bridge.kernel import pci

from . import units
from .units import (
    ALL,
    FOLDER,
    binding,
    client,
    drop_in,
    prop,
    service,
    systemctl,
    unit_socket,
)
from .waiting import until

UNITS = Path("/usr/lib/systemd/system")
USER = "vfio-user-bridge"
DEVICE = devices.EDU_ALONE
WITH_DRIVER = devices.RTL8139
ABSENT = "0000:66:00.0"


def serves(device: str) -> None:
    with client(device) as remote:
        edu.works(remote)


def process(device: str) -> dict[str, str]:
    """/proc/PID/status of a device's bridge."""
    path = Path("/proc", prop("MainPID", service(device)), "status")
    return dict(line.split(":\t", 1) for line in path.read_text().splitlines())


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    page.run("systemd.md", {}, section="Once")


@pytest.fixture(autouse=True)
def found_again() -> Iterator[None]:
    with units.found_again():
        yield


# ---- The units --------------------------------------------------------------------------------


def test_systemd_finds_nothing_wrong() -> None:
    units = sorted(map(str, UNITS.glob(ALL)))
    assert len(units) == 3
    # The tree has no man(1).
    verify = ("systemd-analyze", "verify", "--man=no", *units)
    assert subprocess.run(verify, capture_output=True, text=True, check=True).stderr == ""


@pytest.mark.parametrize("unit", [service(DEVICE), binding(DEVICE)])
def test_they_are_hardened(unit: str) -> None:
    analyze = ("systemd-analyze", "security", "--no-pager", "--threshold=20", unit)  # tenths
    subprocess.run(analyze, check=True)


# ---- A device's life --------------------------------------------------------------------------


def test_a_client_starts_the_bridge_and_the_host_gets_its_device_back() -> None:
    there = {"0000:01:10.1": WITH_DRIVER}
    driver = pci.find(WITH_DRIVER).driver
    assert driver not in (None, "vfio-pci")
    systemctl("start", unit_socket(WITH_DRIVER))
    assert prop("ActiveState", service(WITH_DRIVER)) == "inactive"
    assert pci.find(WITH_DRIVER).driver == driver
    with client(WITH_DRIVER) as remote:
        assert remote.read(CONFIG, 0, 4) == 0x813910EC
        assert pci.find(WITH_DRIVER).driver == "vfio-pci"
        assert f"pid {os.getpid()}, uid 0" in prop("StatusText", service(WITH_DRIVER))
    page.run("systemd.md", there, section="One device")
    page.run("systemd.md", there, section="Giving it back")
    assert pci.find(WITH_DRIVER).driver == driver
    assert prop("ActiveState", unit_socket(WITH_DRIVER)) == "inactive"


def test_it_is_no_root() -> None:
    systemctl("start", service(DEVICE))
    user = pwd.getpwnam(USER)
    status = process(DEVICE)
    assert set(status["Uid"].split()) == {str(user.pw_uid)}
    assert set(status["Gid"].split()) == {str(user.pw_gid)}
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    serves(DEVICE)


def qemu_uses(driver: Edu) -> Seen:
    driver.pci.enable()
    driver.qtest.write(MEMORY, TEXT)
    driver.dma(MEMORY, BUFFER, len(TEXT), RUN)
    driver.dma(BUFFER, MEMORY + PAGE, len(TEXT), RUN | TO_MEMORY)
    driver.pci.enable_msi(MESSAGE, 0x1234)
    driver.set(IRQ_RAISE, 1)
    message = driver.message(awaited=True)
    driver.set(IRQ_ACKNOWLEDGE, 1)
    return [driver.compute(5), driver.qtest.read(MEMORY + PAGE, len(TEXT)), message]


def test_an_unmodified_qemu_uses_it() -> None:
    systemctl("start", service(DEVICE))
    bridged = json.dumps({**qemu.device(FOLDER / f"{DEVICE}.sock"), "addr": "4.0"})
    assert see(qemu_uses, bridged) == [120, TEXT, 0x1234]


# ---- When it goes wrong -----------------------------------------------------------------------


def test_restarted_it_serves_again_when_the_client_has_let_go() -> None:
    systemctl("start", service(DEVICE))
    bound = prop("InvocationID", binding(DEVICE))
    with client(DEVICE) as remote:
        bar = remote.map(PciRegion.BAR0)
        with pytest.raises(subprocess.CalledProcessError):
            systemctl("restart", service(DEVICE))
        remote.wire.wait_until_hung_up()
        # It doesn't come up while the device is in use, and doesn't give up either.
        until(
            lambda: int(prop("NRestarts", service(DEVICE))) > 2,
            lambda: systemctl("list-units", "--all", ALL),
        )
        bar.close()
    serves(DEVICE)  # this one has waited
    assert prop("InvocationID", binding(DEVICE)) == bound


def test_who_comes_for_a_device_that_is_absent_is_not_kept_for_ever() -> None:
    # The default, five times in ten seconds, is nothing for a machine as slow as this one.
    drop_in(binding(ABSENT), "[Unit]", "StartLimitBurst=1", "StartLimitIntervalSec=1min")
    systemctl("start", unit_socket(ABSENT))
    with pytest.raises(GONE):
        client(ABSENT)
    assert prop("Result", unit_socket(ABSENT)) == "trigger-limit-hit"


# ---- Drop-ins ---------------------------------------------------------------------------------


CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"


def lets_in(user: str, device: str) -> bool:
    group = pwd.getpwnam(user).pw_gid
    become = ("setpriv", f"--reuid={user}", f"--regid={group}", "--init-groups", "--")
    connect = ("python3", "-c", CONNECT, str(FOLDER / f"{device}.sock"))
    done = subprocess.run((*become, *connect), capture_output=True, text=True, check=False)
    assert not done.returncode or "PermissionError" in done.stderr
    return not done.returncode


def test_who_may_connect() -> None:
    systemctl("start", unit_socket(DEVICE))
    assert not lets_in("libvirt-qemu", DEVICE)
    page.run("systemd.md", {"0000:01:10.1": DEVICE}, section="Who may connect")
    assert lets_in("libvirt-qemu", DEVICE)
    assert not lets_in("nobody", DEVICE)
    systemctl("start", service(DEVICE))  # whoever came has started it, and is waited for


def test_the_operator_looks_and_acts(tmp_path: Path) -> None:
    systemctl("start", service(DEVICE))
    page.run("systemd.md", {"0000:01:10.1": DEVICE}, section="Seeing and controlling it")
    control, trace = f"/run/vfio-user-bridge-control/{DEVICE}", tmp_path / "trace"

    def tell(*words: str | Path) -> None:
        subprocess.run(("vfio-user-bridge", "control", *words, "--control", control), check=True)

    with client(DEVICE) as remote:
        tell("record", trace)
        remote.write(edu.BAR, edu.RAISE, 4, 0)
        tell("stop-recording")
        tell("disconnect")
        remote.wire.wait_until_hung_up()
    show = ("vfio-user-bridge", "trace", "show", trace)
    shown = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    assert "write" in shown
    assert "bar0" in shown
    tell("drain")
    with pytest.raises(GONE):
        client(DEVICE)
    tell("admit")
    serves(DEVICE)


def test_metrics() -> None:
    """On a socket, for the unit has no network; what the process takes is among them."""
    path = f"/run/vfio-user-bridge-control/{DEVICE}.metrics"
    drop_in(service(DEVICE), "[Service]", f"Environment='OPTIONS=--metrics {path}'")
    systemctl("start", service(DEVICE))
    told = scrapes.text(path)
    assert f'vfio_user_client_connected{{device="{DEVICE}"}} 0.0' in told
    assert "process_resident_memory_bytes" in told
    assert "process_cpu_seconds_total" in told


def test_several_devices_of_a_group() -> None:
    first, second = devices.EDU_PAIR
    there = {"0000:02:00.0": first, "0000:02:00.1": second}
    page.run("systemd.md", there, section="Several devices of one IOMMU group")
    with client(first) as one, client(second) as two:
        for change in ("reload", "kill --signal=KILL", "status"):
            edu.works(one)
            edu.works(two)
            systemctl(*change.split(), service(first))
    assert prop("ActiveState", service(second)) == "inactive"


def test_a_group_that_systemd_opens() -> None:
    group = pci.find(DEVICE).iommu_group
    there = {"0000:03:00.0": DEVICE, "vfio/12": f"vfio/{group}", "/12\n": f"/{group}\n"}
    page.run("systemd.md", there, section="A bridge that may open no group")
    mode = Path(f"/dev/vfio/{group}").stat()
    status = process(DEVICE)
    assert status["Uid"].split()[0] not in (str(mode.st_uid), str(pwd.getpwnam(USER).pw_uid))
    assert str(mode.st_gid) not in status["Gid"].split() + status["Groups"].split()
    assert mode.st_mode & 0o007 == 0
    systemctl("kill", "--signal=KILL", service(DEVICE))
    with client(DEVICE) as remote:  # it was opened anew
        edu.works(remote)
        systemctl("kill", "--signal=KILL", service(DEVICE))
        edu.works(remote)  # it was kept
        systemctl("reload", service(DEVICE))
        edu.works(remote)
