# SPDX-License-Identifier: BSD-3-Clause
"""The monitor of a QEMU that a test starts (docs/interop/qmp-spec.rst of QEMU)."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PATIENCE = 60.0  # seconds for an answer or an event


class Qmp:
    """We listen and QEMU connects as it starts: nobody has to try again until the other is there.

    Give QEMU `arguments`, start it, then `open`.
    """

    def __init__(self, folder: Path) -> None:
        """Listen on a socket in *folder*."""
        path = folder / "qmp"
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._listener.settimeout(PATIENCE)
        self._events: list[dict[str, Any]] = []
        self.arguments = ("-qmp", f"unix:{path}")

    def open(self) -> None:
        """Take QEMU's call and greet it."""
        self._socket, _ = self._listener.accept()
        self._socket.settimeout(PATIENCE)
        self._lines = self._socket.makefile("r", encoding="utf-8")
        self._receive()  # the greeting
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: object) -> Any:
        """Execute a command; gives what it returns. Underscores of *arguments* are dashes.

        :raise RuntimeError: QEMU's error
        """
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        request = {"execute": name, "arguments": named}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while "event" in (answer := self._receive()):
            self._events.append(answer)
        if "error" in answer:
            raise RuntimeError(answer["error"]["desc"])
        return answer["return"]

    def event(self, name: str, when: Callable[[dict[str, Any]], bool] = bool) -> dict[str, Any]:
        """Wait for an event for whose data *when* holds; gives the data. Older ones are dropped."""
        while True:
            event = self._events.pop(0) if self._events else self._receive()
            data: dict[str, Any] = event.get("data", {})
            if event["event"] == name and when(data):
                return data

    def deleted(self, device: str) -> None:
        """Wait until QEMU has let go of *device*, for which the guest had to agree."""
        self.event("DEVICE_DELETED", lambda data: data.get("device") == device)

    def close(self) -> None:
        self._listener.close()
        if hasattr(self, "_socket"):
            self._lines.close()
            self._socket.close()

    def _receive(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise EOFError("QEMU is gone")
        message: dict[str, Any] = json.loads(line)
        return message

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
