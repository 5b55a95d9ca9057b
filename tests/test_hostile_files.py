# SPDX-License-Identifier: BSD-3-Clause
"""Files of the wrong kind, where memory or an eventfd belongs, or where no file does."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from vfio_user_bridge import models

from . import client as c
from .client import Client
from .descriptors import open_descriptors
from .engines import NATIVE, talk
from .hostile_files import KINDS, SIZE, hostile_files
from .wire import dma_map, dma_unmap, region, set_irqs, u32, u64

PAGE = 4096
MSI, EVENTFD_TRIGGER = 1, 0x24
DMA_SOURCE, DMA_BYTES, DMA_COMMAND, TO_DEVICE = 0x80, 0x90, 0x98, 1

#: what can be mapped for writing; the kernel's IOMMU has a say on top, in the test machine
MAPPABLE = {"memory", "punched", "sealed against changing size", "on a disk", "/dev/zero"}
READABLE = {*MAPPABLE, "read-only", "sealed against writing"}
EVENTFDS = {"eventfd", "semaphore"}
#: commands that bring no file
FILELESS = {
    c.GET_INFO: u32(16, 0, 0, 0),
    c.GET_IRQ_INFO: u32(16, 0, MSI, 0),
    c.REGION_READ: region(0, 0, 4),
    c.REGION_WRITE: region(4, 0, u32(1)),
    c.DMA_UNMAP: dma_unmap(0, PAGE),
    c.RESET: b"",
}


@pytest.fixture
def client() -> Iterator[Client]:
    with closing(models.create("edu")) as edu, talk(NATIVE, edu) as end:
        yield end.client


@pytest.fixture
def files() -> Iterator[dict[str, int]]:
    with hostile_files() as files:
        yield files


@pytest.mark.parametrize("kind", KINDS)
def test_as_memory(client: Client, files: dict[str, int], kind: str) -> None:
    reply = client.call(c.DMA_MAP, dma_map(0, PAGE), [files[kind]])
    assert (reply.error == 0) == (kind in MAPPABLE), os.strerror(reply.error)
    reply = client.call(c.DMA_MAP, dma_map(PAGE, PAGE, flags=1), [files[kind]])
    assert (reply.error == 0) == (kind in READABLE), os.strerror(reply.error)


@pytest.mark.parametrize("kind", KINDS)
def test_as_eventfd(client: Client, files: dict[str, int], kind: str) -> None:
    payload = set_irqs(EVENTFD_TRIGGER, MSI, 0, 1)
    reply = client.call(c.SET_IRQS, payload, [files[kind]])
    assert reply.error == (0 if kind in EVENTFDS else errno.EINVAL)


@pytest.mark.parametrize("command", FILELESS)
def test_where_none_belongs(client: Client, files: dict[str, int], command: int) -> None:
    """They are closed, and change nothing."""
    before = open_descriptors()
    for fd in files.values():
        client.ask(command, FILELESS[command], [fd])
    client.ask(command, FILELESS[command], list(files.values())[:16])
    client.ask(c.GET_INFO, FILELESS[c.GET_INFO])  # by then the one before is done with
    assert open_descriptors() == before


def test_a_file_that_shrinks_under_a_map(client: Client, files: dict[str, int]) -> None:
    """DMA from what is gone ends at once, and the server doesn't."""
    ram = files["memory"]
    client.ask(c.DMA_MAP, dma_map(0, SIZE), [ram])
    os.truncate(ram, 0)
    for register, value in ((DMA_SOURCE, PAGE), (DMA_BYTES, 64), (DMA_COMMAND, TO_DEVICE)):
        client.ask(c.REGION_WRITE, region(register, 0, u64(value)))
    assert client.ask(c.REGION_READ, region(4, 0, 4))
    client.ask(c.DMA_UNMAP, dma_unmap(0, SIZE))
