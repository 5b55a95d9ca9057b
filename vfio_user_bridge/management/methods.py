# SPDX-License-Identifier: BSD-3-Clause
"""What the operator can ask of a running bridge: the methods of the control socket.

Each takes MessagePack values and gives one; a wrong one raises BridgeError, whose text is the
answer. *device* is a device's name; an empty one means the only device there is, or all of them
where that makes sense.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from vfio_user_bridge import __version__, log
from vfio_user_bridge.confinement import Confinement
from vfio_user_bridge.errors import BridgeError

# Loaded now: when it is needed, its file may be a newer version's, or out of reach.
from vfio_user_bridge.handover import handing  # noqa: F401
from vfio_user_bridge.handover.link import ToSuccessor
from vfio_user_bridge.kernel.processes import process_namespace
from vfio_user_bridge.limits import RECORD_LIMIT
from vfio_user_bridge.port import Port
from vfio_user_bridge.server import Server

from .control import Methods


def methods(server: Server, confinement: Callable[[], Confinement]) -> tuple[Methods, Methods]:
    """Those that take values, and those that take a file before them; by name."""

    # Before all that is given up.
    directory, user, processes = _folder(), os.geteuid(), process_namespace()

    def one(device: object) -> Port:
        ports = _ports(device)
        if len(ports) > 1:
            names = ", ".join(port.device.name for port in ports)
            raise BridgeError(f"say which device; there are: {names}")
        return ports[0]

    def _ports(device: object) -> list[Port]:
        if not isinstance(device, str):
            raise BridgeError(f"a device has a name, not {device!r}")
        return server.ports(device)

    def status() -> object:
        return {
            "version": __version__,
            "pid": os.getpid(),
            "log_level": log.level(),
            "confinement": asdict(confinement()),
            "devices": [each.as_data() for each in server.status()],
        }

    def reset(device: str = "") -> None:
        one(device).reset()

    def disconnect(device: str = "") -> None:
        one(device).disconnect()

    def drain(device: str = "") -> None:
        for port in _ports(device):
            port.drain(True)

    def admit(device: str = "") -> None:
        for port in _ports(device):
            port.drain(False)

    def log_level(level: str) -> None:
        if level not in log.LEVELS:
            raise BridgeError(f"no log level {level!r}; there are: {', '.join(log.LEVELS)}")
        log.set_level(level)

    def record(file: int, device: str = "", limit: int = RECORD_LIMIT) -> None:
        if not isinstance(limit, int):
            raise BridgeError(f"a recording's limit is in bytes, not {limit!r}")
        one(device).record(file, limit)

    def stop_recording(device: str = "") -> None:
        one(device).stop_recording()

    def command_line() -> object:
        words = sys.argv[1:]
        return {
            "pid": os.getpid(),
            "version": __version__,
            "arguments": words[words[:1] == ["serve"] :],  # which may go without saying
            "directory": directory,
            "user": user,
            "processes": processes,
        }

    def hand_over(file: int) -> None:
        server.successions.ask(ToSuccessor(socket.fromfd(file, socket.AF_UNIX, socket.SOCK_STREAM)))

    by_name: Methods = {
        "status": status,
        "reset": reset,
        "disconnect": disconnect,
        "drain": drain,
        "admit": admit,
        "log-level": log_level,
        "stop-recording": stop_recording,
        "command-line": command_line,
    }
    return by_name, {"record": record, "hand-over": hand_over}


def _folder() -> str:
    """Where this process was started."""
    try:
        return str(Path.cwd())
    except OSError:  # it has been removed since
        return "/"
