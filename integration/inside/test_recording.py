# SPDX-License-Identifier: BSD-3-Clause
"""What is recorded of hardware is what it does again; a model of it differs where it must."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from integration import devices
from tests.descriptors import eventfds, memory_files
from vfio_user_bridge.device import PciIrq
from vfio_user_bridge.trace.reader import Trace
from vfio_user_bridge.trace.records import Client, End, Record

from . import edu
from .bridge import CONFIG, Bridge, RemoteDevice, bind, command, fired

LIVENESS, FACTORIAL, STATUS, IRQ_STATUS = 0x04, 0x08, 0x20, 0x24
BY_EVENTFD, OFF = 0x24, 0x21
IOVA = 1 << 24
#: until the device has done anything, in seconds: to poll would be another conversation each time
DONE = 1.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a recording of each of the two functions of a slot, which did the same."""
    folder = tmp_path_factory.mktemp("traces")
    bind(*devices.EDU_PAIR)
    options = ("--record", str(folder), "--confine", "all")
    with Bridge(*devices.EDU_PAIR, options=options) as bridge:
        for name in devices.EDU_PAIR:
            with bridge.client(name) as device:
                drive(device)
        assert bridge.stop() == 0
    return folder


def drive(device: RemoteDevice) -> None:
    """What a driver of edu does, each step whole before the next."""
    assert device.read(CONFIG, 0, 4) == edu.IDS
    device.enable()
    device.write(edu.BAR, LIVENESS, 4, 0x12345678)
    assert device.read(edu.BAR, LIVENESS, 4) == 0xEDCBA987
    device.write(edu.BAR, FACTORIAL, 4, 10)
    time.sleep(DONE)
    assert device.read(edu.BAR, FACTORIAL, 4) == 3628800
    assert not device.read(edu.BAR, STATUS, 4) & 1
    with memory_files(1, 8192) as (ram,), eventfds(1) as (msi,):
        device.set_irqs(BY_EVENTFD, PciIrq.MSI, 0, 1, [msi])
        device.write(edu.BAR, edu.RAISE, 4, 4)
        assert fired(msi)
        assert device.read(edu.BAR, IRQ_STATUS, 4) == 4
        device.write(edu.BAR, edu.ACKNOWLEDGE, 4, 4)
        os.pwrite(ram, b"from memory", 0)
        device.dma_map(ram, IOVA, 8192)
        for source, target, way in (
            (IOVA, edu.BUFFER, 0),
            (edu.BUFFER, IOVA + 4096, edu.TO_MEMORY),
        ):
            device.write(edu.BAR, edu.DMA_SOURCE, 8, source)
            device.write(edu.BAR, edu.DMA_TARGET, 8, target)
            device.write(edu.BAR, edu.DMA_COUNT, 8, 4096)
            device.write(edu.BAR, edu.DMA_COMMAND, 8, way | edu.RUN)
            time.sleep(DONE)
            assert device.read(edu.BAR, edu.DMA_COMMAND, 8) == way
        assert os.pread(ram, 11, 4096) == b"from memory"
        device.set_irqs(OFF, PciIrq.MSI, 0, 0)
        device.dma_unmap(IOVA, 8192)


def trace(folder: Path, name: str) -> Path:
    return folder / f"{name}.trace"


def records(path: Path) -> list[Record]:
    with Trace(path) as recording:
        return list(recording)


def test_each_device_has_its_recording(folder: Path) -> None:
    for name in devices.EDU_PAIR:
        came, *asked, went, end = records(trace(folder, name))
        assert isinstance(came, Client)
        assert isinstance(went, Client)
        assert isinstance(end, End)
        assert (came.came, went.came, end.reason) == (True, False, "closed")
        assert not any(record.errno for record in asked)
        assert all(record.latency > 0 for record in asked)
        with Trace(trace(folder, name)) as recording:
            assert recording.header.device == name
            assert recording.header.config[:4] == edu.IDS.to_bytes(4, "little")


def test_twins_differ_in_nothing_that_a_driver_asks(folder: Path) -> None:
    traces = (str(trace(folder, name)) for name in devices.EDU_PAIR)
    compared = command("trace", "diff", *traces)
    assert (compared.returncode, compared.stdout, compared.stderr) == (0, "", "")


def test_the_hardware_does_the_same_again(folder: Path) -> None:
    """At its pace: its DMA takes 100 ms."""
    name = devices.EDU_PAIR[0]
    path = trace(folder, name)
    replayed = command("trace", "replay", str(path), name, "--pace")
    count = len(records(path)) - 1
    assert replayed.stdout == f"{count} requests, none of which {name} answers otherwise\n"
    assert replayed.returncode == 0
    assert "there is no way to reset it" in replayed.stderr  # edu has none


def test_at_once_it_is_not_done_yet(folder: Path) -> None:
    name = devices.EDU_PAIR[0]
    replayed = command("trace", "replay", str(trace(folder, name)), name)
    assert replayed.returncode == 1
    assert "bar0 DMA_COMMAND" in replayed.stdout


def test_the_model_differs_in_what_the_firmware_has_done(folder: Path) -> None:
    """To a device of the host; no firmware has seen the model."""
    replayed = command("trace", "replay", str(trace(folder, devices.EDU_PAIR[0])), "model:edu")
    assert replayed.returncode == 1
    then, now, last = replayed.stdout.splitlines()
    assert "read    config COMMAND = 0x0103" in then
    assert "read    config COMMAND = 0x0000" in now
    assert "requests, 1 of which edu answers otherwise" in last
