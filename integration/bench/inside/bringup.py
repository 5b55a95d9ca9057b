# SPDX-License-Identifier: BSD-3-Clause
"""How soon a guest has booted, and its six devices are up: disk there, links up, edu answering.

The drivers are part of the guest's kernel, which has them probe before it starts init. So each
guest also forgets the devices, and finds them again: that is a bring-up that init sees all of.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from integration import devices
from integration.guest_shell import BOOT_TIMEOUT
from integration.inside.bridge import Bridge
from integration.inside.live_guest import Properties

from ..figures import Line, at_most, compare
from ..setting import Setting
from .guests import PEER, addresses, assigned, bridged, direct, running, seconds

DEVICES = (
    devices.EDU,
    devices.NVME,
    devices.E1000E,
    devices.IGB,
    devices.RTL8139,
    devices.E1000,
)
MOST = 1.2
TO_INIT, FROM_INIT, IN_ALL = "exec of QEMU to init", "init to all up", "exec of QEMU to all up"
#: after which the guest's kernel had to forget them
AGAIN = "PCI rescan to all up"


@contextmanager
def _bridged() -> Iterator[list[Properties]]:
    with Bridge(*DEVICES) as bridge:
        yield bridged(bridge, *DEVICES)


@contextmanager
def _direct() -> Iterator[list[Properties]]:
    yield direct(*DEVICES)


def _boot(setting: Setting, devices: list[Properties]) -> dict[str, float]:
    """Boot a guest; gives seconds, by what took them."""
    places = " ".join(addresses(len(devices)))
    with running(setting, devices, f"took=$(bringup once {places})\n") as guest:
        (up,) = seconds(guest.run("echo $took"))
        _already, again = seconds(guest.run(f"bringup again {places}", BOOT_TIMEOUT))
        boot = guest.boot_time
    return {TO_INIT: boot - up, FROM_INIT: up, IN_ALL: boot, AGAIN: again}


def measure(setting: Setting) -> Iterator[Line]:
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    with assigned(*DEVICES):
        for _ in range(setting.effort.boots):
            for side, having in ((ours, _bridged), (theirs, _direct)):
                with having() as devices_:
                    side.append(_boot(setting, devices_))
    for what in ours[0]:
        both = [[boot[what]] for boot in ours], [[boot[what]] for boot in theirs]
        goal = None if what == TO_INIT else at_most(MOST, *both)
        yield compare("bringup", what, "s", PEER, *both, goal)
