# SPDX-License-Identifier: BSD-3-Clause
"""The test machine's own QEMU, commanded from inside: what can happen to hardware from outside."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Hardware:
    """A QMP conversation (docs/interop/qmp-spec.rst of QEMU) over the machine's virtio port."""

    def __init__(self) -> None:
        (port,) = Path("/dev").glob("vport*")  # see integration.machine._monitor
        self._port = os.open(port, os.O_RDWR)
        self._unread = b""
        self._number = 0
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: object) -> Any:
        """Execute a command; gives what it returns.

        :raise RuntimeError: QEMU's error
        """
        self._number += 1
        request = {"execute": name, "arguments": arguments, "id": self._number}
        os.write(self._port, json.dumps(request).encode() + b"\n")
        while True:
            answer = self._receive()
            if answer.get("id") != self._number:
                continue  # an event, or the greeting
            if "error" in answer:
                raise RuntimeError(answer["error"]["desc"])
            return answer["return"]

    def human(self, line: str) -> str:
        """A command of the human monitor, for what QMP doesn't have."""
        return str(self.command("human-monitor-command", **{"command-line": line}))

    def _receive(self) -> Any:
        while b"\n" not in self._unread:
            self._unread += os.read(self._port, 4096)
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        os.close(self._port)
