# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge doctor`: whether this host can serve, and what mends it if not.

A check is a function that yields what it has seen, changes nothing, and needn't mind what can't be
read: that is a finding as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.kernel.pci import PciDevice, all_devices, find

from . import devices, extras, iommu, memory, modules, qemu, sockets
from .findings import Finding, problem, warning
from .host import Host

#: by the names that ``--json`` has them by: add to them, don't rename any
HOST_CHECKS: dict[str, Callable[[Host], Iterator[Finding]]] = {
    "iommu": iommu.groups,
    "interrupt-remapping": iommu.remapping,
    "modules": modules.loaded,
    "dev-vfio": modules.node,
    "locked-memory": memory.locked,
    "memory": memory.available,
    "hugepages": memory.hugepages,
    "qemu": qemu.client,
    "socket-dir": sockets.folder,
    "landlock": extras.files,
    "seccomp": extras.seccomp,
    "msgpack": extras.module("msgpack", "control sockets and recordings"),
    "metrics": extras.module("prometheus_client", "serve --metrics"),
    "terminal": extras.module("rich", "colours on terminals"),
    "plot": extras.module("matplotlib", "pictures of recordings"),
}

#: those of each device
DEVICE_CHECKS: dict[str, Callable[[Host, PciDevice], Iterator[Finding]]] = {
    "device-answers": devices.answers,
    "device": devices.assignable,
    "device-group": devices.node,
    "device-reset": devices.reset,
    "device-use": devices.used,
}


def examine(host: Host, bdfs: Sequence[str] = ()) -> Iterator[Finding]:
    """All findings, of the host and of the devices *bdfs*; without any, of those vfio-pci has."""
    for name, check in HOST_CHECKS.items():
        for finding in _safe(check(host)):
            yield replace(finding, check=name)
    named = bdfs or [device.bdf for device in all_devices(host.sysfs) if device.under_vfio]
    if not named:
        yield replace(
            warning(
                "no device was named, and vfio-pci has none",
                "choose one, and bind it",
                "vfio-user-bridge list",
            ),
            check="device",
        )
    for bdf in named:
        try:
            device = find(bdf, host.sysfs)
        except BridgeError as error:
            yield replace(problem(str(error)), check="device", device=bdf)
            continue
        for name, look in DEVICE_CHECKS.items():
            for finding in _safe(look(host, device)):
                yield replace(finding, check=name, device=bdf)


def _safe(findings: Iterator[Finding]) -> Iterator[Finding]:
    """Those of a check, whatever the host's files have in store for it."""
    try:
        yield from findings
    except OSError as error:
        yield warning(f"can't look at {error.filename}: {error.strerror}", "look again as root")
    except (BridgeError, ValueError) as error:
        yield warning(f"can't be told: {error}")
