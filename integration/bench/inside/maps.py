# SPDX-License-Identifier: BSD-3-Clause
"""DMA_MAP and DMA_UNMAP while so many maps are there, in random order: what each takes.

Beside it are the ioctls alone, on another device like ours, and the socket alone: the same messages
to the floor, which answers them and does nothing.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

from integration.devices import EDU, EDU_ALONE
from integration.inside.bridge import Bridge, bind

from ..figures import Figures, Goal, Line, Rounds, at_most, compare
from ..peers import floor
from ..setting import Setting
from ..table import number
from ..timed import microseconds
from .direct import opened

SIZES = {"4 KiB": 4 << 10, "2 MiB": 2 << 20}
VERBS = ("DMA_UNMAP", "DMA_MAP")  # in the order that the C program has them
#: how many times the ioctl and a round trip, and how many times what it takes among FEW maps
MOST, MOST_GROWTH, FEW = 1.5, 1.25, 256
#: Fewer than 65,535 fit into Linux's default of a process, and other servers map each on its own.
MAPPINGS = 1 << 18
#: the C program's memory, if it is of huge pages
HUGE_PAGES = 128
#: What all maps are together is more than the host has: they share memory.
OPTIONS = ("--limit", "mapped=256G")


@dataclass(frozen=True)
class Taken:
    """Microseconds by round and turn."""

    ours: Rounds
    ioctl: Rounds
    trip: Rounds
    peers: Sequence[Rounds]


def times(
    setting: Setting, size: int, container: int, sockets: Sequence[Path]
) -> dict[tuple[str, int], Taken]:
    """What maps of *size* bytes took, by verb and count of maps.

    :param sockets: ours, the floor's, the peers'
    """
    effort, (mine, *others) = setting.effort, sockets
    parties = [str(mine), str(container), *map(str, others)]
    counts = ",".join(map(str, effort.maps))
    numbers = [*map(str, (size, effort.rounds, effort.turns)), counts]
    client = subprocess.run(
        [setting.folder / "maps", *numbers, *parties],
        stdout=subprocess.PIPE,
        pass_fds=(container,),
        check=True,
    )
    flat = microseconds(client.stdout)
    pieces = [flat[at : at + effort.turns] for at in range(0, len(flat), effort.turns)]
    each = len(VERBS) * len(parties)
    taken = {}
    for place, count in enumerate(effort.maps):
        here = pieces[place * effort.rounds * each : (place + 1) * effort.rounds * each]
        for which, verb in enumerate(VERBS):
            ours, ioctl, trip, *peers = (here[at::each] for at in range(which, each, len(VERBS)))
            taken[verb, count] = Taken(ours, ioctl, trip, peers)
    return taken


def within(taken: Taken) -> Goal:
    """What ioctl and socket take by themselves is what there is to be measured against."""
    both = [[median(a) + median(b)] for a, b in zip(taken.ioctl, taken.trip, strict=True)]
    text = f"the peer with a round trip, {number(Figures.of(both).median)} µs"
    return at_most(MOST, taken.ours, both, text)


def measure(setting: Setting) -> Iterator[Line]:
    bind(EDU, EDU_ALONE)
    for limit, value in (("max_map_count", MAPPINGS), ("nr_hugepages", HUGE_PAGES)):
        Path("/proc/sys/vm", limit).write_text(str(value))
    base = floor(setting.folder)
    peers = [] if setting.peer.is_floor else [setting.peer]
    most, few = max(setting.effort.maps), max(n for n in setting.effort.maps if n <= FEW)
    for name, size in SIZES.items():
        with ExitStack() as stack:
            sockets = [stack.enter_context(Bridge(EDU, options=OPTIONS)).socket(EDU)]
            for which, server in enumerate((base, *peers)):
                sockets.append(setting.folder / f"{which}.sock")
                stack.enter_context(server.serving(sockets[-1]))
            direct = stack.enter_context(opened(EDU_ALONE))
            taken = times(setting, size, direct.container, sockets)
        for verb, count in product(reversed(VERBS), setting.effort.maps):
            what, it = f"{verb} of {name}, {count:,} there", taken[verb, count]
            yield compare("maps", what, "µs", "ioctl alone", it.ours, it.ioctl, within(it))
            for peer, its in zip(peers, it.peers, strict=True):
                yield compare("maps", what, "µs", peer.name, it.ours, its)
        for verb in reversed(VERBS):
            ours, before = taken[verb, most].ours, taken[verb, few].ours
            what, peer_name = f"{verb} of {name}, {most:,} there", f"{few:,} there"
            goal = at_most(MOST_GROWTH, ours, before)
            yield compare("maps", what, "µs", peer_name, ours, before, goal)
