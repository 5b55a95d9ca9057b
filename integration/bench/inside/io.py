# SPDX-License-Identifier: BSD-3-Clause
"""A guest's I/O: blocks of an NVMe disk, and replies that come through a network card.

The guest has two of each, alike, one through the bridge and one by vfio-pci, and uses them by
turns. A second guest has them the other way round; a round has half of its samples there. So it
makes no difference which of two devices is the faster one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from integration import devices
from integration.inside.bridge import Bridge
from integration.inside.live_guest import LiveGuest

from ..figures import Goal, Line, Rounds, compare
from ..idle import cpu
from ..setting import Setting
from .guests import PEER, addresses, assigned, bridged, direct, running, seconds

#: disk and card
ONES, OTHERS = (devices.NVME, devices.IGB), (devices.NVME_PORT, devices.IGB_HOST)
#: the guest's command lines, by what they measure
OPERATIONS = {
    "NVMe, 64 KiB read, sequential": "disk read sequential 65536 {count} {disk}",
    "NVMe, 64 KiB written, sequential": "disk write sequential 65536 {count} {disk}",
    "NVMe, 4 KiB read, random": "disk read random 4096 {count} {disk}",
    "NVMe, 4 KiB written, random": "disk write random 4096 {count} {disk}",
    "igb, ARP request to reply": "gateway {card} {count}",
}
#: so many of nine rounds for either side, or more, are what chance gives 96 times of 100
EITHER_WAY = 2

Taken = tuple[list[list[float]], list[list[float]]]


def _names(guest: LiveGuest, disk: str, card: str) -> dict[str, str]:
    """What the guest calls a disk and a card that it has at these addresses."""

    def found(pattern: str) -> str:
        return Path(guest.run(f"echo /sys/bus/pci/devices/{pattern}")).name

    return {"disk": f"/dev/{found(f'{disk}/nvme/*/nvme*')}", "card": found(f"{card}/net/*")}


def _same(ours: Rounds, theirs: Rounds) -> Goal:
    """Whether rounds leave it open who is faster, by the sign test."""
    slower = sum(median(us) > median(them) for us, them in zip(ours, theirs, strict=True))
    return Goal("1 within noise", EITHER_WAY <= slower <= len(ours) - EITHER_WAY)


def measure(setting: Setting) -> Iterator[Line]:
    rounds, count = setting.effort.rounds, setting.effort.operations

    def nothing() -> Taken:
        return [[] for _ in range(rounds)], [[] for _ in range(rounds)]

    taken = {what: nothing() for what in OPERATIONS}
    work = nothing()
    with assigned(*ONES, *OTHERS):
        for ours, theirs in ((ONES, OTHERS), (OTHERS, ONES)):
            with (
                Bridge(*ours) as bridge,
                # The other way round, QEMU 11.1.3 takes vfio-user's container for one of VFIO.
                running(setting, [*direct(*theirs), *bridged(bridge, *ours)]) as guest,
            ):
                places = addresses(len(ours) + len(theirs))
                guest.run(f"bringup once {' '.join(places)}")
                sides = [_names(guest, *places[2:]), _names(guest, *places[:2])]
                processes = bridge.process.pid, guest.process.pid
                for number in range(rounds):
                    # Who begins changes, too: what comes second finds warmer caches.
                    turns = slice(None, None, -1 if number % 2 else 1)
                    begun, before = time.monotonic(), [cpu(pid) for pid in processes]
                    for what, line in OPERATIONS.items():
                        for side, names in list(zip(taken[what], sides, strict=True))[turns]:
                            took = seconds(guest.run(line.format(count=count, **names)))
                            side[number] += [each * 1e6 for each in took]
                    passed = time.monotonic() - begun
                    for side, pid, then in zip(work, processes, before, strict=True):
                        side[number].append((cpu(pid) - then) * 1e3 / passed)
    for what, both in taken.items():
        yield compare("io", what, "µs", PEER, *both, _same(*both))
    none = not any(sum(round_) for round_ in work[0])
    what = "CPU time of the bridge in a second of all this"
    yield compare("io", what, "ms", "the guest's QEMU", *work, Goal("none", none))
