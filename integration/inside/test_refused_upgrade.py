# SPDX-License-Identifier: BSD-3-Clause
"""A new version that can't go on with every device: the old one goes on, and has what it had."""

from __future__ import annotations

import os
from pathlib import Path

from integration import devices

from . import edu
from .bridge import Bridge, bind, command
from .memory import locked, pinned
from .predecessor import SIZE
from .test_dma import IOVA, PAGE, TEXT, memory

FIRST, SECOND = devices.EDU, devices.EDU_ALONE
BAR_SIZE = 1 << 20


def test_locked_memory_stays_the_old_ones(tmp_path: Path) -> None:
    """It has gone on with the first device when it finds that it can't with the second."""
    bind(FIRST, SECOND)
    before = pinned()
    rules, control = tmp_path / "rules.toml", tmp_path / "control"
    rules.write_text(_rule(0))
    options = ("--policy", str(rules), "--control", str(control))
    with memory(SIZE) as fd, Bridge(FIRST, SECOND, options=options) as bridge:
        old = bridge.process.pid
        with bridge.client(FIRST) as device, bridge.client(SECOND) as other:
            device.enable()
            device.dma_map(fd, IOVA, SIZE)
            assert (locked(old), pinned() - before) == (SIZE, SIZE // PAGE)
            rules.write_text(_rule(BAR_SIZE))
            for _ in range(2):
                upgrade = command("upgrade", "--control", str(control))
                assert upgrade.returncode == 1
                assert "bar0" in upgrade.stderr
            assert (locked(old), pinned() - before) == (SIZE, SIZE // PAGE)
            os.pwrite(fd, TEXT, 0)
            edu.copy(device, IOVA, IOVA + PAGE, len(TEXT))
            assert os.pread(fd, len(TEXT), PAGE) == TEXT
            assert other.counts()
            device.dma_unmap(IOVA, SIZE)
            assert (locked(old), pinned()) == (0, before)
    command("unbind", FIRST, SECOND)


def _rule(offset: int) -> str:
    return f'[[rule]]\ndevice = "{SECOND}"\nregion = "bar0"\noffset = {offset:#x}\naction = "log"\n'
