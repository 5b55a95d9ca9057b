# SPDX-License-Identifier: BSD-3-Clause
"""A running `vfio-user-bridge serve`, and its devices as a client has them."""

from __future__ import annotations

import mmap
import os
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests import client as wire
from tests.wire import dma_map, dma_unmap, region, set_irqs, u32
from vfio_user_bridge.messages import IrqInfo, RegionInfo

CHECKOUT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "vfio_user_bridge")
CONFIG = 7


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `vfio-user-bridge` with *arguments* to its end."""
    return subprocess.run(
        (*COMMAND, *arguments), cwd=CHECKOUT, capture_output=True, text=True, check=False
    )


def bind(*bdfs: str) -> None:
    """Give devices to vfio-pci."""
    bound = command("bind", *bdfs)
    assert not bound.returncode, bound.stderr


class Bridge:
    """`serve` of *devices*, with more *options*; *prefix* is a command to run it by.

    :param under: a command of ours that runs it
    """

    def __init__(
        self,
        *devices: str,
        options: Sequence[str] = (),
        prefix: Sequence[str] = (),
        under: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bridge"))
        self.folder.chmod(0o777)
        self._log = self.folder / "log"
        serve = ("serve", *devices, "--socket-dir", str(self.folder), "--log-level", "info")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                (*prefix, *COMMAND, *under, *serve, *options),
                cwd=CHECKOUT,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                pass_fds=pass_fds,
            )
        assert self.process.stdout
        ready = [self.process.stdout.readline() for _ in devices]
        expected = [f"{device} ready on {self.socket(device)}\n" for device in devices]
        assert ready == expected, self.log()

    def socket(self, device: str) -> Path:
        return self.folder / f"{device}.sock"

    def log(self) -> str:
        return self._log.read_text()

    def client(self, device: str) -> RemoteDevice:
        return RemoteDevice(self.socket(device))

    def stop(self) -> int:
        """SIGTERM. Gives the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self.process.stdout
        self.process.stdout.close()
        if self.process.poll() is None:
            self.stop()
        sys.stdout.write(self.log())  # pytest shows it with a failure


class RemoteDevice:
    """A device behind a socket: what a driver in the client's process does to it."""

    def __init__(self, path: Path) -> None:
        self.wire = wire.connect(path, patience=120.0)
        self.capabilities = self.wire.negotiate()
        self._fds: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.wire.close()
        while self._fds:
            os.close(self._fds.pop())

    def counts(self) -> tuple[int, int]:
        """Regions and interrupt types."""
        payload = self.wire.ask(wire.GET_INFO, u32(16, 0, 0, 0))
        _argsz, _flags, regions, irqs = struct.unpack("=IIII", payload)
        return regions, irqs

    def region_bytes(self, index: int) -> tuple[bytes, int | None]:
        """The whole ``struct vfio_region_info`` of a region, and the file it is mapped from."""
        reply = self.wire.call(wire.GET_REGION_INFO, u32(4096, 0, index, 0) + bytes(16))
        assert reply.flags == wire.REPLY, reply
        self._fds += reply.fds
        return reply.payload, reply.fds[0] if reply.fds else None

    def map(self, index: int) -> mmap.mmap:
        """Region *index*, mapped as QEMU does it."""
        payload, fd = self.region_bytes(index)
        assert fd is not None
        info = RegionInfo.unpack(payload)
        return mmap.mmap(fd, info.size, offset=info.offset)

    def irq(self, index: int) -> IrqInfo:
        return IrqInfo.unpack(self.wire.ask(wire.GET_IRQ_INFO, u32(16, 0, index, 0)))

    def read(self, index: int, offset: int, size: int) -> int:
        payload = self.wire.ask(wire.REGION_READ, region(offset, index, size))
        return int.from_bytes(payload[16:], "little")

    def write(self, index: int, offset: int, size: int, value: int) -> None:
        data = value.to_bytes(size, "little")
        self.wire.ask(wire.REGION_WRITE, region(offset, index, data))

    def enable(self) -> None:
        """Let it answer to memory and I/O accesses, and be a bus master."""
        self.write(CONFIG, 4, 2, self.read(CONFIG, 4, 2) | 0x7)

    def set_irqs(
        self, flags: int, index: int, start: int, count: int, fds: Sequence[int] = ()
    ) -> None:
        self.wire.ask(wire.SET_IRQS, set_irqs(flags, index, start, count), list(fds))

    def dma_map(
        self, fd: int | None, iova: int, size: int, *, offset: int = 0, flags: int = 3
    ) -> None:
        self.wire.ask(wire.DMA_MAP, dma_map(iova, size, offset=offset, flags=flags), _list(fd))

    def dma_map_refused(
        self, fd: int | None, iova: int, size: int, *, offset: int = 0, flags: int = 3
    ) -> int:
        payload = dma_map(iova, size, offset=offset, flags=flags)
        return self.wire.refused(wire.DMA_MAP, payload, _list(fd))

    def dma_unmap(self, iova: int, size: int, *, flags: int = 0) -> None:
        self.wire.ask(wire.DMA_UNMAP, dma_unmap(iova, size, flags=flags))

    def reset(self) -> None:
        self.wire.ask(wire.RESET)


def _list(fd: int | None) -> list[int]:
    return [] if fd is None else [fd]


def fired(eventfd: int, seconds: float = 5.0) -> bool:
    """Whether *eventfd* is signalled within that time; takes the signal."""
    if not select.select([eventfd], [], [], seconds)[0]:
        return False
    os.eventfd_read(eventfd)
    return True


def lines(log: str, pattern: str) -> list[str]:
    """The lines of a log that match."""
    return [line for line in log.splitlines() if re.search(pattern, line)]
