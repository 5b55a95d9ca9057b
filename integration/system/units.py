# SPDX-License-Identifier: BSD-3-Clause
"""The product's units, and what a test does with them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from integration.inside.bridge import RemoteDevice
from vfio_user_bridge.kernel import pci

from .waiting import until

FOLDER = Path("/run/vfio-user-bridge")
ALL = "vfio-user-bridge*"


def systemctl(*arguments: str) -> str:
    command = ("systemctl", *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def service(device: str) -> str:
    return f"vfio-user-bridge@{device}.service"


def unit_socket(device: str) -> str:
    return f"vfio-user-bridge@{device}.socket"


def binding(device: str) -> str:
    return f"vfio-user-bridge-bind@{device}.service"


def prop(name: str, unit: str) -> str:
    """A property of a unit, as systemctl show has it."""
    return systemctl("show", "--value", f"--property={name}", unit)


def main_process(unit: str) -> int:
    return int(prop("MainPID", unit))


def await_another(unit: str, before: int) -> None:
    """Wait until its main process is another than *before*, and it is active."""
    until(lambda: main_process(unit) not in (0, before) and prop("ActiveState", unit) == "active")


def kill(unit: str) -> None:
    """SIGKILL to its main process; returns when there is another."""
    before = main_process(unit)
    os.kill(before, signal.SIGKILL)
    await_another(unit, before)


def client(device: str) -> RemoteDevice:
    return RemoteDevice(FOLDER / f"{device}.sock")


def drop_in(unit: str, *lines: str) -> None:
    folder = Path("/etc/systemd/system", f"{unit}.d")
    folder.mkdir()
    (folder / "test.conf").write_text("\n".join((*lines, "")))
    systemctl("daemon-reload")


def journal(*arguments: str) -> str:
    """What the units have said since the machine is up."""
    subprocess.run(("journalctl", "--sync"), check=True)
    command = ("journalctl", "--boot", "--no-pager", f"--unit={ALL}", *arguments)
    # Units that have never said anything match no pattern, which is a failure.
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@contextmanager
def found_again() -> Iterator[None]:
    """Nothing runs afterwards, every device is where it was, and no drop-in is left."""
    drivers = {device.bdf: device.driver for device in pci.all_devices()}
    yield
    print(journal("--lines=60"))  # pytest shows it with a failure
    systemctl("stop", ALL)
    for folder in Path("/etc/systemd/system").glob(f"{ALL}.d"):
        for drop_in in folder.iterdir():
            drop_in.unlink()
        folder.rmdir()
    systemctl("daemon-reload")
    systemctl("reset-failed")
    assert {device.bdf: device.driver for device in pci.all_devices()} == drivers
    assert not list(FOLDER.glob("*.sock"))
