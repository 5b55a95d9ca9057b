# SPDX-License-Identifier: BSD-3-Clause
"""Whether the kernel has VFIO, and lets this user have it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from .findings import Finding, ok, problem, warning
from .host import Host
from .user import name

NEEDED = ("vfio-pci", "vfio_iommu_type1")
NODE = "dev/vfio/vfio"


def loaded(host: Host) -> Iterator[Finding]:
    """The drivers are in the kernel, or could be."""
    release = host.text("proc/sys/kernel/osrelease").strip()
    folder = f"lib/modules/{release}"
    for module in NEEDED:
        same = module.replace("-", "_")
        if host.has(f"sys/module/{same}"):  # built in as well: both have parameters
            yield ok(f"{module} is in the kernel")
        elif same in _listed(host, f"{folder}/modules.dep"):
            yield warning(f"{module} isn't loaded yet", "bind loads it", f"modprobe {module}")
        elif host.has(folder):
            yield problem(
                f"this kernel, {release}, has no {module}",
                "boot a kernel of your distribution, or one built with CONFIG_VFIO_PCI and"
                " CONFIG_VFIO_IOMMU_TYPE1",
            )
        else:
            yield problem(
                f"{module} isn't loaded, and there is no /{folder} to load it from",
                "in a container, load it on the host; else install the modules of this kernel",
                f"modprobe {module}",
            )


def _listed(host: Host, name: str) -> set[str]:
    """The modules in a modules.dep: each line begins with a path such as a/vfio-pci.ko.xz."""
    paths = (line.partition(":")[0] for line in host.text(name).splitlines())
    return {path.rpartition("/")[2].partition(".ko")[0].replace("-", "_") for path in paths}


def node(host: Host) -> Iterator[Finding]:
    """This user may have containers. Opening the node does nothing yet."""
    if not host.has("sys/class/misc/vfio"):
        return  # opening it would load the module
    try:
        os.close(os.open(host.root / NODE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        match error.errno:
            case errno.EACCES:
                yield problem(f"{name()} may not open /{NODE}", command=f"chmod 0666 /{NODE}")
            case errno.ENOENT:
                yield problem(f"there is no /{NODE}", "let udev make it; give it to a container")
            case _:
                yield problem(
                    f"/{NODE} can't be opened: {error.strerror}",
                    "a container's manager, or a unit's DeviceAllow=, must allow it",
                )
    else:
        yield ok(f"{name()} may open /{NODE}")
