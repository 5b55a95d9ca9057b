# SPDX-License-Identifier: BSD-3-Clause
"""The rows there are, by name and by where they are measured: here, or in the test machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from . import access, handover, idle, memory, recording, scale, start, survival
from .figures import Line
from .inside import bringup, hostdev, interrupts, io, maps
from .setting import Setting

Rows = Mapping[str, Callable[[Setting], Iterator[Line]]]

HERE: Rows = {
    "access": access.measure,
    "recording": recording.measure,
    "survival": survival.measure,
    "idle": idle.measure,
    "start": start.measure,
    "memory": memory.measure,
    "scale": scale.measure,
    "handover": handover.measure,
}
#: with real devices, as real as they get: these need VFIO, an IOMMU and root
MACHINE: Rows = {
    "hostdev": hostdev.measure,
    "interrupts": interrupts.measure,
    "maps": maps.measure,
    "io": io.measure,
    "bringup": bringup.measure,
}
PLACES = {"here": HERE, "machine": MACHINE}
