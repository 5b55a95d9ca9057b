# SPDX-License-Identifier: BSD-3-Clause
"""What a recording has of a guest's own driver: registers of NVMe by their names, all it does."""

from __future__ import annotations

import os
import re
from pathlib import Path

from integration import devices
from vfio_user_bridge import qemu

from . import linux_script
from .bridge import Bridge, bind, command
from .linux_script import CONTENT_SIZE

PLACE = 24 << 20  # where the guest writes, in bytes
#: what Linux's driver does, in this order (NVM Express Base Specification, "Controller
#: Initialization" and "Controller Shutdown"): entries of queues have 2**6 and 2**4 bytes
EXPECTED = (
    ("read ", "CAP", "MQES="),
    ("write", "AQA", "ASQS=31 ACQS=31"),
    ("write", "ASQ", ""),
    ("write", "ACQ", ""),
    ("write", "CC", "EN=1 .*IOSQES=6 IOCQES=4"),
    ("read ", "CSTS", "RDY=1"),
    ("write", "SQTDBL[0]", ""),
    ("write", "CQHDBL[0]", ""),
    ("write", "SQTDBL[1]", ""),
    ("write", "CQHDBL[1]", ""),
    ("write", "CC", "SHN=normal"),
    ("read ", "CSTS", "SHST=complete"),
)


def test_a_guests_nvme_driver(tmp_path: Path) -> None:
    bind(devices.NVME)
    trace = tmp_path / "nvme.trace"
    options = ("--bar-mmap", "off", "--record", str(trace))
    with Bridge(devices.NVME, options=options) as bridge:
        there = {devices.NVME: qemu.device(bridge.socket(devices.NVME))}
        linux_script.boot(
            there, [(devices.NVME, "disk")], os.urandom(CONTENT_SIZE), PLACE, tmp_path
        )
        assert bridge.stop() == 0
    shown = command("trace", "show", str(trace), "--region", "bar0")
    assert not shown.returncode, shown.stderr
    lines = iter(shown.stdout.splitlines())
    for kind, register, fields in EXPECTED:
        wanted = re.compile(f"{kind}   bar0 {re.escape(register)} = .*{fields}")
        found = next(filter(wanted.search, lines), None)
        assert found, f"no more {wanted.pattern} in:\n{shown.stdout}"
