# SPDX-License-Identifier: BSD-3-Clause
"""A Linux guest that is talked to: command lines for its shell, QMP for its QEMU.

Its console goes to a file. The shell is on the second serial port, reads a line at a time, and
answers with the line's output and a line that has its exit status.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from integration import guest, qemu
from integration.progress import tail
from vfio_user_bridge.qemu import arguments

from .qmp import Qmp

MEMORY = "512M"
BOOT_TIMEOUT = 400.0  # seconds, of a machine in a machine on a busy host
TIMEOUT = 90.0  # seconds for a command line

READY = "ready"
STATUS = re.compile(r"(.*?)\nstatus (\d+)\n", re.DOTALL)
SHELL = f"""
exec 3<>/dev/ttyS1
stty raw -echo <&3
echo {READY} >&3
while read -r line <&3; do
    eval "$line" >&3 2>&1
    printf '\\nstatus %d\\n' $? >&3
done
"""


class GuestError(Exception):
    """The guest is gone, hangs, or a command line failed. The text has what was said last."""


class LiveGuest:
    """A q35 machine with devices from vfio-user sockets, each behind a root port of its own.

    :param folder: for sockets and logs
    :param sockets: by the id that the device gets, in the order of the guest's buses from 1 on;
        None leaves the port empty for such a device
    :param modules: kernel modules to load
    :param script: shell functions for the command lines
    :param machine: further arguments for QEMU, before those of the devices
    :param append: further kernel arguments
    """

    def __init__(
        self,
        folder: Path,
        sockets: Mapping[str, Path | None],
        modules: Sequence[str],
        script: str = "",
        *,
        machine: Sequence[str] = (),
        append: str = "",
    ) -> None:
        self._console = folder / "console"
        self._listener = socket.socket(socket.AF_UNIX)
        shell = folder / "shell"
        shell.unlink(missing_ok=True)
        self._listener.bind(str(shell))
        self._listener.listen(1)
        initramfs = folder / "initramfs"
        initramfs.write_bytes(guest.initramfs(script + SHELL, modules))
        self.qmp = Qmp(folder)
        command = [
            *qemu.find(),
            *guest.boot_arguments(initramfs, append),
            *arguments([], MEMORY),
            *machine,
            *("-serial", f"file:{self._console}"),
            *("-chardev", f"socket,id=shell,path={shell}", "-serial", "chardev:shell"),
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
            self._listener.settimeout(TIMEOUT)
            self._shell, _ = self._listener.accept()
            self._said = ""
            self.await_boot()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def await_boot(self) -> None:
        """Wait until the shell is ready, at first and after a reboot."""
        self._until(re.compile(rf".*{READY}\n", re.DOTALL), BOOT_TIMEOUT)

    def run(self, line: str) -> str:
        """Execute a command line; gives its output, without the last newline.

        :raise GuestError: its exit status isn't 0, or it takes too long
        """
        self.begin(line)
        output, status = self._until(STATUS, TIMEOUT).groups()
        if status != "0":
            raise GuestError(f"{line!r} failed with status {status}: {output}")
        return str(output).removesuffix("\n")

    def begin(self, line: str) -> None:
        """Hand a command line to the shell and don't wait for its end, if it has any."""
        assert "\n" not in line
        self._shell.sendall(line.encode() + b"\n")

    def reboot(self) -> None:
        """Have the guest reset its machine, and wait until it is up again."""
        self.qmp.command("set-action", reboot="reset")  # booted with -no-reboot, for a panic's sake
        self.begin("reboot -f")
        self.qmp.event("RESET", lambda data: bool(data["guest"]))
        self.await_boot()
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

    def _until(self, pattern: re.Pattern[str], timeout: float) -> re.Match[str]:
        """Take what the shell says up to the end of what *pattern* matches."""
        self._shell.settimeout(timeout)
        while not (match := pattern.match(self._said)):
            try:
                data = self._shell.recv(65536)
            except TimeoutError:
                data = b""
            if not data:
                console = tail(self._console) if self._console.exists() else ""
                raise GuestError(f"it said {self._said!r}; the end of its console:\n{console}")
            self._said += data.decode(errors="replace").replace("\r\n", "\n")
        self._said = self._said[match.end() :]
        return match

    def close(self) -> None:
        """End QEMU if it hasn't ended."""
        self.kill()
        self._shell.close()
        self._listener.close()
        self.qmp.close()
        sys.stdout.write(tail(self._console))  # pytest shows it with a failure


def device(name: str, path: Path) -> dict[str, object]:
    """The device behind the socket *path*, in its port, as -device and device_add have it."""
    (*_, described) = arguments([path])
    return {**json.loads(described), "id": name, "bus": f"port-{name}"}
