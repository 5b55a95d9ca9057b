# SPDX-License-Identifier: BSD-3-Clause
"""What outlives a process, for a test: open files by name, and memory for what is counted."""

from __future__ import annotations

import mmap
import os
from typing import Any

import msgpack

from vfio_user_bridge.device import Device
from vfio_user_bridge.errors import BridgeError


class KeptFiles:
    """`keep` and `take` of open files, `cells` of memory; `close` them in the end."""

    def __init__(self) -> None:
        self.fds: dict[str, int] = {}
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)  # shared with who is forked
        self._used = 0

    def keep(self, name: str, fd: int) -> str:
        if name not in self.fds:
            self.fds[name] = os.dup(fd)
        assert os.path.sameopenfile(self.fds[name], fd), f"{name} is two files"
        return name

    def take(self, name: str) -> int:
        if name not in self.fds:
            raise BridgeError(f"{name} isn't there")
        return os.dup(self.fds[name])

    def cells(self, count: int) -> memoryview:
        start, self._used = self._used, self._used + 8 * count
        return memoryview(self._memory)[start : self._used].cast("Q")

    def rewind(self) -> None:
        """The next process asks for its cells."""
        self._used = 0

    def saved(self, device: Device) -> Any:
        """What *device* gives, and what is around it, as a document has it."""
        given = [device.save(self.keep), device.save_layers(self.keep)]
        return msgpack.unpackb(msgpack.packb(given))

    def restore(self, device: Device, saved: Any) -> None:
        """Have *device* go on as another was `saved`."""
        of_device, of_layers = saved
        device.restore(of_device, self.take)
        device.restore_layers(of_layers, self.take)

    def close(self) -> None:
        self._memory[:] = bytes(mmap.PAGESIZE)
        while self.fds:
            os.close(self.fds.popitem()[1])
