# SPDX-License-Identifier: BSD-3-Clause
"""A Linux guest that is talked to: command lines for its shell, QMP for its QEMU.

Its console goes to a file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from integration import guest, qemu
from integration.guest_shell import SCRIPT, TIMEOUT, GuestShell
from integration.guests_kernel import CARRIED
from integration.progress import tail
from vfio_user_bridge.qemu import arguments

from .qmp import Qmp

MEMORY = "512M"


class LiveGuest:
    """A q35 machine with devices from vfio-user sockets, each behind a root port of its own.

    :param folder: for sockets and logs
    :param sockets: by the id that the device gets, in the order of the guest's buses from 1 on;
        None leaves the port empty for such a device
    :param script: shell functions for the command lines
    :param machine: further arguments for QEMU, before those of the devices
    :param append: further kernel arguments
    """

    def __init__(
        self,
        folder: Path,
        sockets: Mapping[str, Path | None],
        script: str = "",
        *,
        machine: Sequence[str] = (),
        append: str = "",
    ) -> None:
        self._console = folder / "console"
        self._shell = GuestShell(folder / "shell", self._console)
        initramfs = folder / "initramfs"
        initramfs.write_bytes(guest.initramfs(script + SCRIPT))
        self.qmp = Qmp(folder)
        command = [
            *qemu.find(),
            *guest.boot_arguments(CARRIED, initramfs, append),
            *arguments([], MEMORY),
            *machine,
            *("-serial", f"file:{self._console}"),
            *("-chardev", f"socket,id=shell,path={self._shell.path}", "-serial", "chardev:shell"),
            *self.qmp.arguments,
        ]
        for number, (name, path) in enumerate(sockets.items(), start=1):
            port = f"pcie-root-port,id=port-{name},chassis={number},addr={0x10 + number:x}.0"
            command += ["-device", port]
            if path:
                command += ["-device", json.dumps(device(name, path))]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            self.qmp.open()
            self._shell.accept()
            self._shell.await_boot()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def run(self, line: str) -> str:
        """As `GuestShell.run`."""
        return self._shell.run(line)

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

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        """End QEMU if it hasn't ended."""
        self.kill()
        self._shell.close()
        self.qmp.close()
        sys.stdout.write(tail(self._console))  # pytest shows it with a failure


def device(name: str, path: Path) -> dict[str, object]:
    """The device behind the socket *path*, in its port, as -device and device_add have it."""
    (*_, described) = arguments([path])
    return {**json.loads(described), "id": name, "bus": f"port-{name}"}
