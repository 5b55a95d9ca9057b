# SPDX-License-Identifier: BSD-3-Clause
"""What a trapped access costs more while it is recorded."""

from __future__ import annotations

from collections.abc import Iterator

from .access import PIPELINED, places, started_on
from .figures import Line, at_most, compare
from .peers import ours
from .setting import Setting
from .timed import timed

PEER = "not recorded"
MOST = 1.1


def measure(setting: Setting) -> Iterator[Line]:
    recorded, plain = setting.folder / "recorded.sock", setting.folder / "plain.sock"
    trace = setting.folder / "trace"
    for place, servers, clients in places():
        trace.unlink(missing_ok=True)
        with (
            started_on(servers),
            ours(recorded, "--record", str(trace)),
            ours(plain),
            started_on(clients),
        ):
            for kind, batch in (("read", 1), ("write", 1), ("read", PIPELINED)):
                count = setting.effort.accesses // batch
                us, them = timed(setting, kind, batch, count, recorded, plain)
                how = "one at a time" if batch == 1 else f"{batch} pipelined, each"
                goal = at_most(MOST, us, them, PEER) if batch == 1 else None
                what = f"REGION_{kind.upper()} {place}, {how}"
                yield compare("recording", what, "µs", PEER, us, them, goal)
