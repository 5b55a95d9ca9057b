# SPDX-License-Identifier: BSD-3-Clause
"""Trapped accesses of 4 bytes over the real socket, one at a time and 32 on their way at once."""

from __future__ import annotations

from collections.abc import Iterator

from .figures import Line, compare
from .peers import ours
from .setting import Setting
from .timed import timed

PIPELINED = 32


def measure(setting: Setting) -> Iterator[Line]:
    mine, its = setting.folder / "ours.sock", setting.folder / "peer.sock"
    with ours(mine), setting.peer.serving(its):
        for kind in ("read", "write"):
            for batch in (1, PIPELINED):
                us, them = timed(setting, kind, batch, setting.effort.accesses // batch, mine, its)
                how = "one at a time" if batch == 1 else f"{batch} pipelined, each"
                what = f"REGION_{kind.upper()}, {how}"
                yield compare("access", what, "µs", setting.peer.name, us, them)
