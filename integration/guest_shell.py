# SPDX-License-Identifier: BSD-3-Clause
"""A guest's shell: command lines in, their output and exit status out, over a UNIX socket.

The guest has the other end as a serial port, where QEMU connects to us. The shell reads a line at a
time, and answers with the line's output and a line that has its exit status.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path

from integration.progress import tail

BOOT_TIMEOUT = 400.0  # seconds, of a machine in a machine on a busy host
TIMEOUT = 90.0  # seconds for a command line

READY = "ready"
STATUS = re.compile(r"(.*?)\nstatus (\d+)\n", re.DOTALL)
#: for the guest's process 1, after what it needs to define
SCRIPT = f"""
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


class GuestShell:
    """Listens at *path*, for the guest's second serial port.

    :param console: the file where the guest's console goes, for the text of errors
    """

    def __init__(self, path: Path, console: Path) -> None:
        self.path = path
        self._console = console
        self._listener = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._listener.settimeout(TIMEOUT)
        self._shell: socket.socket | None = None
        self._said = ""

    def accept(self) -> None:
        """Take the call of a QEMU that starts; an earlier one is forgotten."""
        self._hang_up()
        self._shell, _ = self._listener.accept()
        self._said = ""

    def await_boot(self) -> None:
        """Wait until the shell is ready, at first and after a reboot."""
        self._until(re.compile(rf".*{READY}\n", re.DOTALL), BOOT_TIMEOUT)

    def run(self, line: str, timeout: float = TIMEOUT) -> str:
        """Execute a command line; gives its output, without the last newline.

        :param timeout: in seconds
        :raise GuestError: its exit status isn't 0, or it takes too long
        """
        self.begin(line)
        output, status = self._until(STATUS, timeout).groups()
        if status != "0":
            raise GuestError(f"{line!r} failed with status {status}: {output}")
        return str(output).removesuffix("\n")

    def begin(self, line: str) -> None:
        """Hand a command line to the shell and don't wait for its end, if it has any."""
        assert "\n" not in line
        assert self._shell
        self._shell.sendall(line.encode() + b"\n")

    def _until(self, pattern: re.Pattern[str], timeout: float) -> re.Match[str]:
        """Take what the shell says up to the end of what *pattern* matches."""
        assert self._shell
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
        self._hang_up()
        self._listener.close()

    def _hang_up(self) -> None:
        if self._shell:
            self._shell.close()
            self._shell = None
