# SPDX-License-Identifier: BSD-3-Clause
"""Trapped accesses of 4 bytes to a real device's BAR: as `access`, with VFIO behind the bridge."""

from __future__ import annotations

from collections.abc import Iterator

from integration.devices import EDU
from integration.inside.bridge import Bridge, bind

from ..access import compared
from ..figures import Line
from ..setting import Setting


def measure(setting: Setting) -> Iterator[Line]:
    its = setting.folder / "peer.sock"
    bind(EDU)
    with Bridge(EDU) as bridge, setting.peer.serving(its):
        yield from compared(setting, "hostdev", "of edu's BAR 0", bridge.socket(EDU), its)
