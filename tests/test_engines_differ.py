# SPDX-License-Identifier: BSD-3-Clause
"""The same requests to both engines, every reply compared: a second opinion on each message.

They differ in what docs/engines.md lists by name, with who is right, and in nothing else. What is
listed must come up here, or the list is out of date.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from vfio_user_bridge import models
from vfio_user_bridge.device import Device, PciIrq

from . import client as c
from .client import Client, Reply
from .descriptors import inodes
from .engines import ENGINES, LIBRARY, need, talk
from .fake_device import FakeDevice
from .request_sequences import FILE_SIZE, Request, sequence
from .wire import dma_unmap, set_irqs, u16

DOCUMENT = Path(__file__).parents[1] / "docs" / "engines.md"
LENGTH = 300
DEVICES: dict[str, Callable[[], Device]] = {
    "edu": lambda: models.create("edu"),
    "fake": FakeDevice,
}
FEATURES = (c.FEATURE, c.MIG_DATA_READ, c.MIG_DATA_WRITE)
ACCESSES = (c.REGION_READ, c.REGION_WRITE)
_SET_EVENTFDS, _OFF = 0x24, 0x21

Difference = Callable[[Request, Reply, Reply], bool]


def _u32(payload: bytes, at: int) -> int:
    return int.from_bytes(payload[at : at + 4], "little")


def _err_and_req(request: Request, _native: Reply, library: Reply) -> bool:
    if _u32(request.payload, 8) not in (PciIrq.ERR, PciIrq.REQ):
        return False
    if request.command == c.GET_IRQ_INFO:
        return _u32(library.payload, 12) == 0
    return request.command == c.SET_IRQS and library.error == errno.EINVAL


def _irq_flags(request: Request, native: Reply, library: Reply) -> bool:
    masked = native.payload[:4] + b"\1\0\0\0" + native.payload[8:]
    return request.command == c.GET_IRQ_INFO and masked == library.payload


def _lenient_signals(request: Request, native: Reply, library: Reply) -> bool:
    if request.command != c.SET_IRQS or library.error:
        return False
    flags, count = _u32(request.payload, 4), _u32(request.payload, 16)
    set_up = flags == _SET_EVENTFDS or (flags == _OFF and not count)
    return not set_up and native.error in (errno.EINVAL, errno.ENOTTY)


def _mappable(request: Request, native: Reply, library: Reply) -> bool:
    if request.command != c.GET_REGION_INFO or native.error or library.error:
        return False
    # Index, size and offset are the same, and so is the file, if it comes.
    alike = native.payload[8:12] + native.payload[16:32]
    assert library.payload[8:12] + library.payload[16:32] == alike
    return bool(_u32(native.payload, 4) & 4) and len(library.fds) <= len(native.fds)


#: by the name in the document
DIFFERENCES: dict[str, Difference] = {
    "unmap-exact": lambda request, _native, library: (
        request.command == c.DMA_UNMAP and library.error == errno.ENOENT
    ),
    "map-over-another": lambda request, native, library: (
        request.command == c.DMA_MAP
        and native.error == errno.EEXIST
        and library.error in (0, errno.EINVAL)
    ),
    "write-multi": lambda request, native, library: (
        request.command == c.REGION_WRITE_MULTI
        and (native.error, library.error) == (0, errno.EINVAL)
    ),
    "features": lambda request, _native, library: (
        request.command in FEATURES and library.error == errno.EINVAL
    ),
    "absent-io-fds": lambda request, native, library: (
        request.command == c.GET_REGION_IO_FDS
        and (native.error, library.error) == (0, errno.EINVAL)
    ),
    "empty-access": lambda request, _native, library: (
        request.command in ACCESSES
        and _u32(request.payload, 12) == 0
        and not library.error
        and library.payload == b""
    ),
    "error-payload": lambda _request, native, library: (
        native.error == library.error != 0 and native.payload == b"" != library.payload
    ),
    "err-and-req": _err_and_req,
    "irq-flags": _irq_flags,
    "lenient-signals": _lenient_signals,
    "mappable-regions": _mappable,
}


class Side:
    """One engine's client and the files that it sends."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.files = {"memory": os.memfd_create("memory"), "eventfd": os.eventfd(0)}
        os.truncate(self.files["memory"], FILE_SIZE)

    def do(self, request: Request) -> Reply | None:
        files = [self.files[kind] for kind in request.files]
        if request.flags & c.NO_REPLY:
            self.client.send(request.command, request.payload, files, flags=request.flags)
            return None
        reply = self.client.call(request.command, request.payload, files)
        for fd in reply.fds:
            os.close(fd)
        return reply

    def start_over(self) -> None:
        """No map, no interrupt: so that what one engine did doesn't show again and again."""
        self.client.ask(c.DMA_UNMAP, dma_unmap(0, 0, flags=2))
        for index in (PciIrq.INTX, PciIrq.MSI, PciIrq.MSIX):
            self.client.call(c.SET_IRQS, set_irqs(_OFF, index, 0, 0))

    def close(self) -> None:
        for fd in self.files.values():
            os.close(fd)


def differences(device: str, seed: int) -> Iterator[str]:
    """Put a sequence of requests to both engines. Gives the name of each difference in replies.

    :raise AssertionError: for one that has no name
    """
    with ExitStack() as stack:
        native, library = sides = [
            stack.enter_context(
                closing(
                    Side(
                        stack.enter_context(
                            talk(engine, stack.enter_context(closing(DEVICES[device]())))
                        ).client
                    )
                )
            )
            for engine in ENGINES
        ]
        for number, request in enumerate(sequence(seed, LENGTH)):
            ours, theirs = (side.do(request) for side in sides)
            if ours is None or theirs is None or _alike(ours, theirs):
                continue
            names = [name for name, known in DIFFERENCES.items() if known(request, ours, theirs)]
            assert names, f"request {number}: {request}\nnative:  {ours}\nlibrary: {theirs}"
            yield names[0]
            for side in sides:
                side.start_over()
        memory = [os.pread(side.files["memory"], FILE_SIZE, 0) for side in (native, library)]
        assert memory[0] == memory[1]


def _alike(ours: Reply, theirs: Reply) -> bool:
    assert (ours.number, ours.command) == (theirs.number, theirs.command)
    fields = [(reply.flags, reply.error, reply.payload) for reply in (ours, theirs)]
    return fields[0] == fields[1] and len(ours.fds) == len(theirs.fds)


@pytest.fixture
def library() -> None:
    need(LIBRARY)


@pytest.mark.usefixtures("library")
def test_replies_differ_in_what_is_documented_only() -> None:
    seen = {
        name
        for device, seeds in {"edu": range(8), "fake": range(3)}.items()
        for seed in seeds
        for name in differences(device, seed)
    }
    assert seen == DIFFERENCES.keys()


@pytest.mark.usefixtures("library")
def test_version() -> None:
    """The native engine names what was proposed, with the device's limits; the library its own."""
    capabilities = {}
    for engine in ENGINES:
        with closing(FakeDevice()) as device, talk(engine, device, negotiated=False) as end:
            capabilities[engine] = end.client.negotiate(c.QEMU_CAPABILITIES)
    assert capabilities["native"].keys() == c.QEMU_CAPABILITIES.keys()
    assert capabilities[LIBRARY] == {"max_msg_fds": 8, "max_data_xfer_size": 1 << 20}


@pytest.mark.usefixtures("library")
def test_the_file_of_a_region_is_the_same() -> None:
    with closing(FakeDevice()) as device:
        for engine in ENGINES:
            with talk(engine, device) as end:
                request = (64).to_bytes(4, "little") + bytes(4) + u16(2, 0) + bytes(20)
                reply = end.client.call(c.GET_REGION_INFO, request)
                assert inodes(reply.fds) == inodes([device.bar])
                os.close(reply.fds[0])


def test_each_is_documented_by_name() -> None:
    documented = re.findall(r"^\| `([a-z-]+)` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert set(documented) == {*DIFFERENCES, "version"}
