# SPDX-License-Identifier: BSD-3-Clause
"""Many devices in one process, each with a client that asks all the time, against one such client.

The peer is that one client, of the same process, while the other devices have none.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean

from .figures import Line, compare
from .many import serving, sockets
from .setting import Setting
from .timed import microseconds

ALONE = "one client alone"
EQUAL = "an equal share"


def _flood(setting: Setting, paths: Sequence[Path]) -> list[list[float]]:
    """The accesses of one client for each socket, all at the same time, in microseconds."""
    milliseconds = str(int(setting.effort.seconds * 1000))
    # They share a pipe as stdin, so they start together: when its one writer closes it.
    waiting, start = os.pipe()
    with ExitStack() as stack:
        stack.callback(os.close, waiting)
        starter = stack.enter_context(os.fdopen(start, "wb"))
        clients = []
        for path in paths:
            command = [str(setting.folder / "flood"), milliseconds, str(path)]
            client = subprocess.Popen(command, stdin=waiting, stdout=subprocess.PIPE)
            clients.append(stack.enter_context(client))
        for client in clients:
            assert client.stdout
            assert client.stdout.read(1) == b"\n"
        starter.close()
        return [microseconds(client.communicate()[0]) for client in clients]


def measure(setting: Setting) -> Iterator[Line]:
    count, seconds = setting.effort.devices[-1], setting.effort.seconds
    paths = sockets(setting.folder, count)
    alone, together = [], []
    with serving(setting.folder, count):
        for _ in range(setting.effort.rounds):
            together.append(_flood(setting, paths))
            alone.append(_flood(setting, paths[:1]))

    def rates(floods: list[list[list[float]]]) -> list[list[float]]:
        return [[len(accesses) / seconds for accesses in flood] for flood in floods]

    one, each = rates(alone), rates(together)
    total = [[sum(clients)] for clients in each]
    yield compare("scale", f"{count} clients, total rate", "1/s", ALONE, total, one)
    equal = [[fmean(clients)] for clients in each]
    for which, pick in (("slowest", min), ("fastest", max)):
        what = f"the {which} of {count} clients"
        yield compare("scale", what, "1/s", EQUAL, [[pick(clients)] for clients in each], equal)
    waits = [[access for client in flood for access in client] for flood in together]
    lone = [flood[0] for flood in alone]
    yield compare("scale", f"REGION_READ of one of {count} clients", "µs", ALONE, waits, lone)
