# SPDX-License-Identifier: BSD-3-Clause
"""Linux guests that have devices through a bridge, or by QEMU's own vfio-pci, which is the peer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from integration.inside.bridge import Bridge, bind, command
from integration.inside.live_guest import LiveGuest, Properties
from vfio_user_bridge import qemu

from ..setting import Setting

PEER = "vfio-pci"
MEMORY = "128M"  # all of it is pinned before the guest begins
PROGRAMS = ("disk", "gateway", "bringup")


def direct(*bdfs: str) -> list[Properties]:
    return [{"driver": PEER, "host": bdf} for bdf in bdfs]


def bridged(bridge: Bridge, *bdfs: str) -> list[Properties]:
    return [qemu.device(bridge.socket(bdf)) for bdf in bdfs]


def addresses(count: int) -> list[str]:
    """Where a guest has its devices, in their order."""
    return [f"0000:{bus:02x}:00.0" for bus in range(1, count + 1)]


def seconds(said: str) -> list[float]:
    """What a program in a guest took, by what it said."""
    return [int(nanoseconds) / 1e9 for nanoseconds in said.split()]


@contextlib.contextmanager
def assigned(*bdfs: str) -> Iterator[None]:
    """Have these devices at vfio-pci; they go back to the machine's drivers afterwards."""
    bind(*bdfs)
    try:
        yield
    finally:
        command("unbind", *bdfs)


@contextlib.contextmanager
def running(
    setting: Setting, devices: Sequence[Properties], script: str = ""
) -> Iterator[LiveGuest]:
    """A guest with these devices, in their order, and our programs; in the end it powers off.

    :param script: what process 1 runs first
    """
    files = {f"bin/{name}": (setting.folder / name).read_bytes() for name in PROGRAMS}
    named = {f"device{number}": device for number, device in enumerate(devices)}
    with TemporaryDirectory() as folder:
        guest = LiveGuest(Path(folder), named, script, memory=MEMORY, files=files)
        try:
            yield guest
            guest.power_off()
        finally:
            guest.close()
