# SPDX-License-Identifier: BSD-3-Clause
"""A Linux guest that is talked to: command lines for its shell, QMP for its QEMU.

Its console goes to a file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from integration import guest, qemu
from integration.guest_shell import SCRIPT, TIMEOUT, GuestShell
from integration.guests_kernel import CARRIED
from integration.progress import tail
from vfio_user_bridge.qemu import arguments

from .qmp import Qmp

MEMORY = "512M"

#: of -device, but for id and place
Properties = Mapping[str, object]


class LiveGuest:
    """A q35 machine with devices, each behind a root port of its own.

    :param folder: for sockets and logs
    :param devices: by the id that the device gets, in the order of the guest's buses from 1 on, the
        properties of -device; None leaves the port empty for such a device
    :param script: what process 1 runs before it takes command lines
    :param machine: further arguments for QEMU, before those of the devices
    :param append: further kernel arguments
    :param files: further files, as `guest.initramfs` has them
    """

    #: seconds, from QEMU's exec until the guest takes command lines
    boot_time: float

    def __init__(
        self,
        folder: Path,
        devices: Mapping[str, Properties | None],
        script: str = "",
        *,
        machine: Sequence[str] = (),
        append: str = "",
        memory: str = MEMORY,
        files: Mapping[str, bytes] = guest.NO_FILES,
    ) -> None:
        self._console = folder / "console"
        self._complaints = folder / "qemu"
        self._shell = GuestShell(folder / "shell", self._console)
        initramfs = folder / "initramfs"
        initramfs.write_bytes(guest.initramfs(script + SCRIPT, files=files))
        self.qmp = Qmp(folder)
        command = [
            *qemu.find(),
            *guest.boot_arguments(CARRIED, initramfs, append),
            *arguments([], memory),
            *machine,
            *("-serial", f"file:{self._console}"),
            *("-chardev", f"socket,id=shell,path={self._shell.path}", "-serial", "chardev:shell"),
            *self.qmp.arguments,
        ]
        for number, (name, properties) in enumerate(devices.items(), start=1):
            port = f"pcie-root-port,id=port-{name},chassis={number},addr={0x10 + number:x}.0"
            command += ["-device", port]
            if properties:
                command += ["-device", json.dumps(placed(name, properties))]
        begun = time.monotonic()
        with self._complaints.open("w") as complaints:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=complaints)
        try:
            self.qmp.open()
            self._shell.accept()
            self._shell.await_boot()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        self.boot_time = time.monotonic() - begun

    def run(self, line: str, timeout: float = TIMEOUT) -> str:
        """As `GuestShell.run`."""
        return self._shell.run(line, timeout)

    def begin(self, line: str) -> None:
        """As `GuestShell.begin`."""
        self._shell.begin(line)

    def reboot(self) -> None:
        """Have the guest reset its machine, and wait until it is up again."""
        self.qmp.command("set-action", reboot="reset")  # booted with -no-reboot, for a panic's sake
        self.begin("reboot -f")
        self.qmp.event("RESET", lambda data: bool(data["guest"]))
        self._shell.await_boot()
        self.qmp.command("set-action", reboot="shutdown")

    def power_off(self) -> None:
        """Have the guest end, and wait for the end of QEMU."""
        self.begin("poweroff -f")
        self.process.wait(TIMEOUT)

    def kill(self) -> None:
        """SIGKILL for QEMU."""
        self.process.kill()
        self.process.wait()

    def complaints(self) -> str:
        """What QEMU has written to stderr."""
        return self._complaints.read_text()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        """End QEMU if it hasn't ended."""
        self.kill()
        self._shell.close()
        self.qmp.close()
        sys.stdout.write(tail(self._console))  # pytest shows it with a failure
        sys.stdout.write(self.complaints())


def placed(name: str, properties: Properties) -> dict[str, object]:
    """A device in its port, as -device and device_add have it."""
    return {**properties, "id": name, "bus": f"port-{name}"}
