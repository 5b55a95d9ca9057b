# SPDX-License-Identifier: BSD-3-Clause
"""Trapped accesses of 4 bytes to a real device's BAR: as `access`, with VFIO behind the bridge."""

from __future__ import annotations

from collections.abc import Iterator

from integration.devices import EDU
from integration.inside.bridge import Bridge, bind

from ..access import PIPELINED
from ..figures import Line, compare
from ..setting import Setting
from ..timed import timed


def measure(setting: Setting) -> Iterator[Line]:
    its = setting.folder / "peer.sock"
    bind(EDU)
    with Bridge(EDU) as bridge, setting.peer.serving(its):
        for kind in ("read", "write"):
            for batch in (1, PIPELINED):
                count, mine = setting.effort.accesses // batch, bridge.socket(EDU)
                us, them = timed(setting, kind, batch, count, mine, its)
                what = f"REGION_{kind.upper()} of edu's BAR 0, "
                what += "one at a time" if batch == 1 else f"{batch} pipelined, each"
                yield compare("hostdev", what, "µs", setting.peer.name, us, them)
