# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge trace replay`: whether a device answers as one did."""

from __future__ import annotations

import argparse
from pathlib import Path

from .recordings import STATUSES, add_registers, comparing, complain_of_end

NAME = "replay"
SUMMARY = "ask a device again for all that a recording has, and compare its answers"
EPILOG = f"""\
The device must not be served meanwhile. It is asked what the guest asked, in
order, with eventfds that nobody reads and with memory that is all zeros, for a
recording has nothing of the guest's RAM. In the end it is reset.

Prints what the device did with -, what it does now with +, where that differs.

{STATUSES}
examples:
  vfio-user-bridge trace replay nic.trace 0000:01:10.1 --pace
  vfio-user-bridge trace replay edu.trace model:edu
"""


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="the recording")
    parser.add_argument("device", metavar="DEVICE", help="PCI address (0000:01:10.1), or model:edu")
    parser.add_argument(
        "--pace", action="store_true", help="ask at the times that it has, instead of at once"
    )
    parser.add_argument(
        "--no-dma",
        action="store_true",
        help="leave out its DMA maps, which for a device of the host take as much memory as the"
        " guest's did",
    )
    add_registers(parser)


def run(options: argparse.Namespace) -> int:
    from contextlib import ExitStack, closing

    from vfio_user_bridge.limits import Limits
    from vfio_user_bridge.opening import MODEL, Devices, device_name
    from vfio_user_bridge.terminal import show
    from vfio_user_bridge.trace.names import Names
    from vfio_user_bridge.trace.reader import Trace
    from vfio_user_bridge.trace.replay import Replay, available_memory
    from vfio_user_bridge.trace.unified import replayed

    with comparing(), Trace(options.file) as trace, ExitStack() as undo:
        name = device_name(options.device)
        names = Names(trace.header, options.registers)
        devices = Devices(Limits(mapped=1 << 62), (), undo, bar_mmap=True)
        device = undo.enter_context(closing(devices.open(options.device, name)))
        sparse = options.device.startswith(MODEL)  # a model touches what it is told to
        memory = 1 << 64 if sparse else available_memory()
        replay = Replay(device, dma=not options.no_dma, memory=memory, paced=options.pace)
        show(replayed(undo.enter_context(closing(replay.run(trace))), names))
        if trace.truncated:
            complain_of_end(options.file)
    print(
        f"{replay.asked} requests, {replay.differing or 'none'} of which {name} answers otherwise"
    )
    return 1 if replay.differing else 0
