# SPDX-License-Identifier: BSD-3-Clause
"""What the operator sees of a real device, and does to it under its client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from integration import devices
from vfio_user_bridge.device import PciIrq, PciRegion

from . import edu
from .bridge import Bridge, bind, command
from .test_dma import IOVA, PAGE, memory
from .test_interrupts import EVENTFD, TRIGGER, eventfds
from .test_lifecycle import MARK, RAL0


def control(path: Path, *words: str) -> str:
    done = command(*words, "--control", str(path))
    assert not done.returncode, done.stderr
    return done.stdout


def status(path: Path) -> Any:
    return json.loads(control(path, "status", "--json"))["devices"][0]


def test_what_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "control"
    bind(devices.EDU_ALONE)
    with (
        Bridge(devices.EDU_ALONE, options=("--control", str(path))) as serving,
        serving.client(devices.EDU_ALONE) as device,
        memory(2 * PAGE) as fd,
        eventfds(1) as (event,),
    ):
        device.enable()
        device.dma_map(fd, IOVA, 2 * PAGE)
        device.set_irqs(EVENTFD | TRIGGER, PciIrq.MSI, 0, 1, [event])
        edu.copy(device, IOVA, IOVA + PAGE, 16)
        seen = status(path)
        refused = command("control", "reset", "--control", str(path))
        assert refused.returncode == 1  # it is on the root bus, which nobody resets
        assert "can't be reset: no way of it works here" in refused.stderr
    assert (seen["name"], seen["state"]) == (devices.EDU_ALONE, "serving")
    assert (seen["maps"], seen["mapped"], seen["irqs"]) == (1, 2 * PAGE, {"MSI": 1})
    assert seen["messages"]["DMA_MAP"]["count"] == 1
    assert seen["messages"]["REGION_WRITE"]["count"] > 8  # two transfers of four registers each


def test_a_reset_under_the_client(igb: str, tmp_path: Path) -> None:
    path = tmp_path / "control"
    with (
        Bridge(igb, options=("--control", str(path))) as serving,
        serving.client(igb) as device,
    ):
        device.enable()
        address = device.read(PciRegion.BAR0, RAL0, 4)
        device.write(PciRegion.BAR0, RAL0, 4, MARK)
        control(path, "control", "reset")
        device.enable()
        assert device.read(PciRegion.BAR0, RAL0, 4) == address != MARK


def test_a_client_put_out_leaves_the_device_to_the_next(igb: str, tmp_path: Path) -> None:
    path = tmp_path / "control"
    with Bridge(igb, options=("--control", str(path))) as serving:
        with serving.client(igb) as device:
            control(path, "control", "disconnect", igb)
            device.wire.wait_until_hung_up()
        with serving.client(igb) as device:
            device.enable()
            assert device.read(PciRegion.BAR0, RAL0, 4) != MARK
