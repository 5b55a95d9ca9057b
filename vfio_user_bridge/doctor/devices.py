# SPDX-License-Identifier: BSD-3-Clause
"""Whether a device can be given to a guest, and will be as new for the next one."""

from __future__ import annotations

import os
from collections.abc import Iterator

from vfio_user_bridge.kernel.drivers import holders
from vfio_user_bridge.kernel.inuse import uses
from vfio_user_bridge.kernel.pci import PciDevice, all_devices, group_devices, obstacle

from .findings import Finding, ok, problem, warning
from .host import Host
from .user import may, name

_UNCLEAN = "let no guest have it that mustn't find what the one before left in it"


def answers(_host: Host, device: PciDevice) -> Iterator[Finding]:
    """It is there, and not only remembered by the kernel."""
    state = device.power_state
    if device.answers:
        yield ok(f"{device.bdf} answers{f', in {state}' if state else ''}")
        return
    path = f"/sys/bus/pci/devices/{device.bdf}"
    yield problem(
        f"{device.bdf} doesn't answer: all of its config space is ones",
        "look for it anew; if it stays away, power the machine off and on",
        f"echo 1 >{path}/remove && echo 1 >/sys/bus/pci/rescan",
    )


def assignable(_host: Host, device: PciDevice) -> Iterator[Finding]:
    """The kernel gives it away, with all of its IOMMU group."""
    if not device.answers:
        return  # what its config space says of it isn't so
    if why := obstacle(device):
        yield problem(why.seen, why.advice, why.command)
        return
    group = device.iommu_group
    assert group is not None  # or it were an obstacle
    others = [other for other in group_devices(group, device.sysfs) if other.bdf != device.bdf]
    named = ", ".join(f"{other.bdf} ({other.driver or 'no driver'})" for other in others)
    beside = f", beside {named}" if others else ""
    yield ok(f"{device.bdf} can be served; it is in IOMMU group {group}{beside}")


def node(host: Host, device: PciDevice) -> Iterator[Finding]:
    """This user may open the group, and nobody else has it."""
    if not device.under_vfio:
        return  # it has no node yet
    shown = f"/dev/vfio/{device.iommu_group}"
    path = host.root / shown[1:]
    if not path.exists():
        yield problem(
            f"there is no {shown}, which is how {device.bdf} is opened",
            "let udev make it; give it to a container",
        )
    elif not may(path, os.R_OK | os.W_OK):
        yield problem(
            f"{name()} may not open {shown}, which is how {device.bdf} is opened",
            "give it to this user, or pass it in open (serve --group-fd)",
            f"chown {name()} {shown}",
        )
    elif users := holders(path):
        yield warning(
            f"{shown}, the group of {device.bdf}, is in use by {' and '.join(users)}",
            "one process serves all of a group; another must wait for its end",
        )
    else:
        unseen = "; only root sees whether another has" if os.geteuid() else ""
        yield ok(f"{name()} may open {shown}, the group of {device.bdf}{unseen}")


def reset(_host: Host, device: PciDevice) -> Iterator[Finding]:
    """It can be reset between guests."""
    bdf, methods = device.bdf, set(device.reset_methods)
    bus = bdf.rpartition(":")[0]
    beside = [d.bdf for d in all_devices(device.sysfs) if d.bdf.startswith(bus) and d.bdf != bdf]
    if methods - {"pm", "bus"} or ("bus" in methods and not beside):
        yield ok(f"{bdf} can be reset: {', '.join(device.reset_methods)}")
    elif "bus" in methods:
        yield warning(
            f"{bdf} is reset with its bus, and so is what else is there: {', '.join(beside)}",
            "serve all of these by one process",
        )
    elif "pm" in methods:
        yield warning(
            f"{bdf} is reset by a change of power state, through which some keep their registers",
            _UNCLEAN,
        )
    elif (device.path / "reset").exists():  # Linux before 5.15
        yield ok(f"{bdf} can be reset; this kernel doesn't tell how")
    else:
        yield warning(f"{bdf} can't be reset", _UNCLEAN)


def used(host: Host, device: PciDevice) -> Iterator[Finding]:
    """The host can do without it."""
    found = uses(host.sysfs, host.proc).get(device.bdf, ())
    for use in found:
        text = f"the host uses {device.bdf}: {use.text}"
        if use.vital:
            yield problem(text, "unmount it first (swapoff for swap), or choose another device")
        else:
            yield warning(text, "bind takes it from the host: see that you can reach it without")
    if not found:
        yield ok(f"the host has nothing mounted or up on {device.bdf}")
