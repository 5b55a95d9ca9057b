# SPDX-License-Identifier: BSD-3-Clause
"""Guests that try what a policy forbids, on real devices: e1000e under qtest, edu under Linux."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration import devices
from integration.pci import COMMAND, COMMAND_IO, COMMAND_MASTER, COMMAND_MEMORY, PciHost
from integration.qtest import Qtest
from vfio_user_bridge import qemu

from .bridge import Bridge, bind, lines
from .live_guest import LiveGuest

NIC, EDU = devices.E1000E, devices.EDU_ALONE

CACHE_LINE_SIZE, INTERRUPT_LINE = 0x0C, 0x3C  # linux/pci_regs.h

# e1000e: CTRL, of which bit 26 resets all registers; RDBAL and RAL, in other pages, of which the
# latter has the card's address (drivers/net/ethernet/intel/e1000e/regs.h). Flash is BAR 1. BAR 2
# has two I/O ports, for a register's offset and its content.
IO_BAR = 2
CTRL, RDBAL, RAL = 0x0, 0x2800, 0x5400
CTRL_FD, CTRL_RST = 1 << 0, 1 << 26
ADDRESS = 0x52, 0x54, 0x00, 0x12  # QEMU's begin so
PAGE = 0x1000

POLICY = f"""
[[rule]]
region = "config"
offset = {CACHE_LINE_SIZE}
access = "write"
action = "deny"
note = "read-only"

[[rule]]
device = "{NIC}"
region = "bar1"
offset = "all"
action = "deny"
note = "flash"

[[rule]]
device = "{NIC}"
region = "bar0"
offset = "0x0-0x3"
access = "write"
action = "force"
value = 0
mask = {CTRL_RST:#x}
note = "no reset"

[[rule]]
device = "{EDU}"
region = "bar0"
offset = "0x0-0x3"
access = "read"
action = "deny"
note = "identification"

[[rule]]
device = "{EDU}"
region = "bar0"
offset = "0x4-0x7"
access = "write"
action = "deny"
note = "liveness"

[[rule]]
device = "{EDU}"
region = "bar0"
offset = "0x20-0x23"
action = "force"
value = 0x80
mask = 0x80
note = "interrupt when a factorial is done"

[[rule]]
device = "{EDU}"
region = "bar0"
offset = 0x98
action = "log"
note = "DMA"

[[rule]]
device = "{NIC}"
region = "config"
offset = "{COMMAND:#x}-{COMMAND + 1:#x}"
action = "force"
value = 0
mask = {COMMAND_MASTER:#x}
note = "no DMA"
"""


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    policy = tmp_path_factory.mktemp("policy") / "policy.toml"
    policy.write_text(POLICY)
    bind(NIC, EDU)
    with Bridge(NIC, EDU, options=("--policy", str(policy))) as running:
        yield running
        assert running.stop() == 0


@contextmanager
def stopped(bridge: Bridge) -> Iterator[None]:
    """Whoever needs the bridge meanwhile waits until it goes on."""
    bridge.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        bridge.process.send_signal(signal.SIGCONT)


def test_a_card(bridge: Bridge) -> None:
    properties = {**qemu.device(bridge.socket(NIC)), "addr": "4.0"}
    with Qtest("-device", json.dumps(properties)) as qtest:
        card = PciHost(qtest).device(4)
        card.enable()

        # It isn't bus master, though it was told so.
        on = COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER
        assert card.read_config(COMMAND, 2) & on == COMMAND_IO | COMMAND_MEMORY

        # A register of config space that can only be read, and another.
        before = card.read_config(CACHE_LINE_SIZE, 1)
        card.write_config(CACHE_LINE_SIZE, 1, before ^ 0x10)
        assert card.read_config(CACHE_LINE_SIZE, 1) == before
        line = card.read_config(INTERRUPT_LINE, 1)
        card.write_config(INTERRUPT_LINE, 1, line ^ 0x5)
        assert card.read_config(INTERRUPT_LINE, 1) == line ^ 0x5

        # Flash is closed.
        card.store(1, 0, 4, 0)
        assert card.load(1, 0, 4) == 0xFFFFFFFF
        assert card.load(1, card.bars[1].size - 8, 8) == 0xFFFFFFFF_FFFFFFFF

        # What CTRL's reset would clear stays; its other bits can be written.
        card.store(0, RDBAL, 4, 0x12340)
        control = card.load(0, CTRL, 4)
        card.store(0, CTRL, 4, (control ^ CTRL_FD) | CTRL_RST)
        assert card.load(0, RDBAL, 4) == 0x12340
        assert card.load(0, CTRL, 4) == control ^ CTRL_FD

        # Not so through IOADDR and IODATA, where registers are once more and no rule is.
        card.store(IO_BAR, 0, 4, CTRL)
        card.store(IO_BAR, 4, 4, control | CTRL_RST)
        assert card.load(0, RDBAL, 4) == 0

        # All pages but CTRL's are mapped: nobody needs the bridge for them.
        with stopped(bridge):
            for page in range(PAGE, card.bars[0].size, PAGE):
                card.load(0, page, 4)
            address = card.load(0, RAL, 4)
            card.store(0, RDBAL, 4, 0x43210)
            assert card.load(0, RDBAL, 4) == 0x43210
        assert tuple(address.to_bytes(4, "little")) == ADDRESS

    log = bridge.log()
    for rule, what in (
        (1, r"\(read-only\): denied write of 1 bytes at 0xc of config: 0x"),
        (2, r"\(flash\): denied write of 4 bytes at 0x0 of bar1: 0x00000000"),
    ):
        assert len(lines(log, rf"WARNING {NIC}: policy rule {rule} {what}")) == 1


SCRIPT = """
cd /sys/bus/pci/devices/0000:01:00.0
echo 1 >enable
read at _ <resource
register() { devmem $(($at + $1)) 32 $2; }
byte() { hexdump -s $1 -n 1 -e '1/1 "%02x\\n"' config; }
set_byte() { printf "\\x$2" | dd of=config bs=1 seek=$(($1)) conv=notrunc 2>/dev/null; }
"""


def test_a_linux_guest(bridge: Bridge, tmp_path: Path) -> None:
    guest = LiveGuest(tmp_path, {"edu": qemu.device(bridge.socket(EDU))}, SCRIPT, memory="256M")
    try:
        before = guest.run(f"byte {CACHE_LINE_SIZE}")
        assert before != "42"
        guest.run(f"set_byte {CACHE_LINE_SIZE} 42; set_byte {INTERRUPT_LINE} 05")
        assert guest.run(f"byte {CACHE_LINE_SIZE}; byte {INTERRUPT_LINE}") == f"{before}\n05"
        assert guest.run("register 0x0") == "0xFFFFFFFF"  # it would be 0x010000ED
        liveness = guest.run("register 0x4")
        guest.run("register 0x4 0x12345678")
        assert guest.run("register 0x4") == liveness != "0xEDCBA987"
        guest.run("register 0x20 0")
        assert guest.run("register 0x20") == "0x00000080"
        guest.run("register 0x8 5")
        assert guest.run("register 0x8") == "0x00000078"  # what has no rule works: 5!
        guest.run("register 0x98 0")
    finally:
        guest.close()
    log = bridge.log()
    assert lines(log, rf"{EDU}: policy rule 5 \(liveness\): denied write of 4 .*: 0x12345678")
    assert lines(
        log, rf"{EDU}: policy rule 7 \(DMA\): logged write of 1 bytes at 0x98 of bar0: 0x00"
    )
