# SPDX-License-Identifier: BSD-3-Clause
"""A successor that has gone on with a device when it finds that it can't: nothing is undone."""

from __future__ import annotations

import os
from pathlib import Path

from vfio_user_bridge.management.control import ask
from vfio_user_bridge.trace.reader import Trace
from vfio_user_bridge.trace.records import End, Read

from . import client as c
from .descriptors import memory_files
from .replaceable_server import SUPERVISED, replaceable
from .visit import BAR0, IOVA, PAGE
from .wire import dma_map, region


def test_the_old_one_is_recorded_on_and_can_be_killed(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with (
        memory_files(1, PAGE) as (ram,),
        replaceable(tmp_path, command=SUPERVISED) as bridge,
        bridge.client() as client,
    ):

        def read(offset: int) -> None:
            client.ask(c.REGION_READ, region(offset, BAR0, 4))

        client.ask(c.DMA_MAP, dma_map(IOVA, PAGE), [ram])
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        ask(bridge.control, "record", files=[file], hand=True)
        read(0)
        os.ftruncate(ram, 0)  # a model's map can't be made again then
        assert "can't go on with the DMA map" in bridge.upgrade(1)
        os.ftruncate(ram, PAGE)
        read(4)
        bridge.kill()
        read(8)
        ask(bridge.control, "stop-recording")
    with Trace(path) as trace:
        *records, end = trace
    assert [record.offset for record in records if type(record) is Read] == [0, 4, 8]
    assert type(end) is End
