# SPDX-License-Identifier: BSD-3-Clause
"""What a trapped access costs more where a bridge that is killed is gone on with.

Reads alone: after what changes it, a model writes down all that it is, which a device of the host
has no need to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.running_server import server

from .access import PIPELINED, places, started_on
from .figures import Line, at_most, compare
from .handover import SUPERVISE
from .peers import ours
from .setting import Setting
from .timed import timed

PEER = "not supervised"
MOST = 1.1


@contextlib.contextmanager
def _supervised(path: Path) -> Iterator[None]:
    with server(path, "--socket-path", str(path), command=SUPERVISE) as running:
        yield
        running.stop()


def measure(setting: Setting) -> Iterator[Line]:
    survives, plain = setting.folder / "survives.sock", setting.folder / "plain.sock"
    for place, servers, clients in places():
        with (
            started_on(servers),
            _supervised(survives),
            ours(plain),
            started_on(clients),
        ):
            for batch in (1, PIPELINED):
                count = setting.effort.accesses // batch
                us, them = timed(setting, "read", batch, count, survives, plain)
                how = "one at a time" if batch == 1 else f"{batch} pipelined, each"
                goal = at_most(MOST, us, them, PEER) if batch == 1 else None
                yield compare("survival", f"REGION_READ {place}, {how}", "µs", PEER, us, them, goal)
