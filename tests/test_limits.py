# SPDX-License-Identifier: BSD-3-Clause
"""What one client may have: how the operator says it, and what happens to who wants more."""

from __future__ import annotations

import errno
import os
from contextlib import closing

import pytest

from vfio_user_bridge import models
from vfio_user_bridge.errors import UsageError
from vfio_user_bridge.limits import DEFAULTS, Limits, described, parse

from . import client as c
from .conversation import conversation
from .descriptors import memory_files
from .engines import NATIVE, talk
from .wire import dma_map, dma_unmap, message, region, u16

PAGE = 4096


# ---- How they are said ----------------------------------------------------------------------


def test_what_is_not_said_stays() -> None:
    assert parse([]) == DEFAULTS
    assert parse(["maps=7"]) == Limits(maps=7)


@pytest.mark.parametrize(
    ("text", "value"),
    [("4096", 4096), ("64k", 64 << 10), ("5M", 5 << 20), ("3G", 3 << 30), ("2T", 2 << 40)],
)
def test_sizes(text: str, value: int) -> None:
    assert parse([f"mapped={text}"]).mapped == value


def test_seconds_may_be_parts() -> None:
    assert parse(["stall=0.5", "grace=0"]) == Limits(stall=0.5, grace=0)


@pytest.mark.parametrize(
    "text",
    ["", "maps", "maps=", "maps=-1", "maps=0", "maps=1.5", "maps=1e3", "maps=٣", "maps=1KK",
     "fds=254", "transfer=4095", "transfer=2G", "stall=nan", "stall=inf", "stall=0", "nonsense=1",
     "mapped=99999999999999999999T"],
)  # fmt: skip
def test_what_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^(there is no limit|limit) '"):
        parse([text])


def test_the_last_word_counts() -> None:
    assert parse(["maps=7", "maps=8"]).maps == 8


def test_each_limit_is_described() -> None:
    names = [line.split()[0] for line in described().splitlines()]
    assert names == ["version", "transfer", "fds", "maps", "files", "mapped", "stall", "grace"]


# ---- What happens beyond them ---------------------------------------------------------------
# stall: test_session.py and test_transport.py; grace: test_server_device.py.


def test_a_first_message_that_is_too_long_ends_the_conversation() -> None:
    with conversation(negotiated=False, limits=Limits(version=1024)) as talk:
        padded = u16(0, 1) + b'{"capabilities": {}}' + b" " * 1024 + b"\0"
        talk.client.socket.sendall(message(c.VERSION, padded))
        talk.client.wait_until_hung_up()


def test_json_that_is_too_deep_is_refused() -> None:
    with conversation(negotiated=False) as talk:
        deep = b"[" * 50_000
        assert talk.client.refused(c.VERSION, u16(0, 1) + deep + b"\0") == errno.EINVAL


def test_transfers() -> None:
    with conversation(negotiated=False, limits=Limits(transfer=8192)) as talk:
        agreed = talk.client.negotiate()
        assert agreed["max_data_xfer_size"] == 8192
        assert talk.client.refused(c.REGION_READ, region(0, 0, 8193)) == errno.EINVAL
        talk.client.ask(c.REGION_READ, region(0, 0, 4096))
        huge = message(c.REGION_WRITE, region(0, 0, 1 << 20) + bytes(1 << 20))
        talk.client.socket.sendall(huge[:64])  # the rest needn't come: it isn't waited for
        talk.client.wait_until_hung_up()


def test_files_in_a_message() -> None:
    with conversation(negotiated=False, limits=Limits(fds=2)) as talk, memory_files(3) as files:
        assert talk.client.negotiate()["max_msg_fds"] == 2
        talk.client.send(c.DMA_MAP, dma_map(0, PAGE), files)
        talk.client.wait_until_hung_up()


def test_maps() -> None:
    with conversation(negotiated=False, limits=Limits(maps=2)) as talk:
        assert talk.client.negotiate()["max_dma_maps"] == 2
        for number in range(2):
            talk.client.ask(c.DMA_MAP, dma_map(number * PAGE, PAGE))
        assert talk.client.refused(c.DMA_MAP, dma_map(2 * PAGE, PAGE)) == errno.ENOSPC
        talk.client.ask(c.DMA_UNMAP, dma_unmap(0, PAGE))
        talk.client.ask(c.DMA_MAP, dma_map(2 * PAGE, PAGE))


def test_mapped_bytes_of_many_maps_of_one_page() -> None:
    """The IOMMU's tables would grow with each, though the page is one."""
    edu = models.create("edu", Limits(mapped=3 * PAGE))
    with closing(edu), memory_files(1, PAGE) as (ram,):
        with talk(NATIVE, edu) as end:
            client = end.client
            for number in range(3):
                client.ask(c.DMA_MAP, dma_map(number * PAGE, PAGE), [ram])
            assert client.refused(c.DMA_MAP, dma_map(3 * PAGE, PAGE), [ram]) == errno.ENOMEM
            client.ask(c.DMA_MAP, dma_map(3 * PAGE, PAGE))  # without a file it costs nothing
            client.ask(c.DMA_UNMAP, dma_unmap(0, PAGE))
            client.ask(c.DMA_MAP, dma_map(4 * PAGE, PAGE), [ram])
        with talk(NATIVE, edu) as end:  # the next one has all of it again
            end.client.ask(c.DMA_MAP, dma_map(0, PAGE), [ram])


def test_mapped_bytes_of_a_file_that_is_mostly_hole() -> None:
    """It is mapped whole, and the bridge's addresses would run out."""
    edu = models.create("edu", Limits(mapped=1 << 30))
    with closing(edu), memory_files(2, PAGE) as files, talk(NATIVE, edu) as end:
        os.truncate(files[0], 1 << 40)
        assert end.client.refused(c.DMA_MAP, dma_map(0, PAGE), files[:1]) == errno.ENOMEM
        end.client.ask(c.DMA_MAP, dma_map(0, PAGE), files[1:])
