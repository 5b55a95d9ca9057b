# SPDX-License-Identifier: BSD-3-Clause
"""What a Linux guest does all the time while its bridge is replaced, and whether all went well.

Three loops of its shell, and ping; each has a log. The disk is behind an IOMMU of the guest's, in
strict mode: its driver maps and unmaps for every transfer, which is a DMA_MAP and a DMA_UNMAP of
each page. The card isn't: all the guest's RAM is mapped for it, as it is for most guests.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Mapping

from .live_guest import LiveGuest

DISK, CARD = "0000:01:00.0", "0000:02:00.0"  # there

#: of QEMU; without caching-mode it doesn't see new mappings
IOMMU = ("-device", "intel-iommu,caching-mode=on")
KERNEL = "intel_iommu=on iommu.strict=1"

SIZE = 128 << 10  # bytes of a transfer
PIECES, PLACES = 7, 32  # of /content, of the disk
CACHE_LINE_SIZE = 0x0C  # in the hardware's config space; a driver of PCI Express has no use for it

PATIENCE = 120.0  # seconds: more than it takes the guest's drivers to complain

#: what a guest's kernel says of its clock where the machine is busy
CLOCK = "CE: hpet increased min_delta_ns|hrtimer: interrupt took|clocksource: |tsc: "

SCRIPT = rf"""
disk() {{ # write a piece of /content and read it, past the page cache: piece, place, checksum
    number=0 block="bs={SIZE} count=1"
    while [ ! -e /enough ]; do
        piece=$(($number % {PIECES})) place=$(($number % {PLACES})) number=$(($number + 1))
        echo -n "$piece $place "
        dd if=/content of=$1 $block skip=$piece seek=$place oflag=direct conv=fsync 2>/dev/null ||
            echo "not written"
        dd if=$1 $block skip=$place iflag=direct 2>/dev/null | sha256sum
    done
}}
header() {{ dd if=$1 bs=256 count=1 2>/dev/null; }} # of config space, by 64 reads
config() {{ # write the cache line size: its value, and all that isn't as it was before
    number=0
    while [ ! -e /enough ]; do
        number=$(($number % 63 + 1))
        printf "\\$(printf %o $number)" |
            dd of=$1 bs=1 seek={CACHE_LINE_SIZE} conv=notrunc 2>/dev/null
        echo $number $(header $1 | cmp -l - /header 2>&1)
    done
}}
card() {{ # no IOMMU between it and memory; it has an address, and a link
    here=/sys/bus/pci/devices/$1
    echo $1 >$here/driver/unbind
    echo identity >$here/iommu_group/type
    echo $1 >/sys/bus/pci/drivers/e1000e/bind
    card=$(ls $here/net)
    ip address add 10.0.2.15/24 dev $card
    ip link set $card up
    until [ "$(cat /sys/class/net/$card/carrier)" = 1 ]; do sleep 0.1; done
}}
begin() {{
    rm -f /enough
    for log in disk config card; do : >/log/$log; done
    disk /dev/nvme0n1 >/log/disk 2>&1 & loops=$!
    config /sys/bus/pci/devices/$1/config >/log/config 2>&1 & loops="$loops $!"
    ping -i 0.5 10.0.2.2 >/log/card 2>&1 & ping=$!
}}
end() {{
    touch /enough
    wait $loops
    kill -INT $ping
    wait $ping
}}
until [ -b /dev/nvme0n1 ]; do sleep 0.1; done
mkdir /log
header /sys/bus/pci/devices/{DISK}/config >/header
card {CARD}
dmesg -c >/dev/null
"""

Counts = Mapping[str, int]


def complaints(guest: LiveGuest) -> list[str]:
    """What its kernel has said since it was last asked."""
    said = guest.run("dmesg -c").splitlines()
    return [line for line in said if not re.search(CLOCK, line)]


def content(seed: int) -> bytes:
    """What the disk's pieces are taken from: the guest's file of that name."""
    return random.Random(seed).randbytes(PIECES * SIZE)  # nosec B311 - secret from nobody


class Workload:
    """It runs in *guest* from `begin` to `end`, which has SCRIPT and `content`."""

    def __init__(self, guest: LiveGuest, content: bytes) -> None:
        self._guest = guest
        self._pieces = [content[n * SIZE : (n + 1) * SIZE] for n in range(PIECES)]
        #: what the disk has, by the address in bytes
        self.written: dict[int, bytes] = {}

    def begin(self) -> None:
        self._guest.run(f"begin {DISK}")

    def rounds(self) -> Counts:
        """How many lines each log has since `begin`."""
        said = self._guest.run("wc -l /log/*")
        return {name: int(count) for count, name in re.findall(r"(\d+) /log/(\w+)", said)}

    def go_on(self) -> None:
        """Wait until each has done a round more."""
        before = self.rounds()
        deadline = time.monotonic() + PATIENCE
        while any(count <= before[name] for name, count in self.rounds().items()):
            assert time.monotonic() < deadline, f"{self.rounds()} rounds, after {before}"
            time.sleep(1)

    def interrupts(self) -> Counts:
        """How many there were of each vector that the loops use, since the guest booted."""
        said = self._guest.run("grep -E 'nvme0q1|eth0-' /proc/interrupts")
        found = re.findall(r": +(\d+) .* (\S+)$", said, re.MULTILINE)
        return {name: int(count) for count, name in found}

    def end(self) -> Counts:
        """How many rounds each did.

        :raise AssertionError: something went wrong in one, or the kernel has complained
        """
        self._guest.run("end")
        done = {"disk": self._disk(), "config": self._config(), "card": self._card()}
        assert not complaints(self._guest)
        return done

    def _disk(self) -> int:
        """What was read is what had been written."""
        rounds = self._guest.run("cat /log/disk").splitlines()
        for line in rounds:
            piece, place = map(int, re.findall(r"^(\d+) (\d+) ", line)[0])
            assert line == f"{piece} {place} {hashlib.sha256(self._pieces[piece]).hexdigest()}  -"
            self.written[place * SIZE] = self._pieces[piece]
        return len(rounds)

    def _config(self) -> int:
        """Nothing has changed but the register that was written, and that to its value."""
        rounds = self._guest.run("cat /log/config").splitlines()
        for line in rounds:
            value = int(line.split()[0])
            assert line == f"{value} {CACHE_LINE_SIZE + 1} {value:o} 0"
        return len(rounds)

    def _card(self) -> int:
        """No echo is missing or came twice, but for the last, which ping may not have awaited."""
        echoes = self._guest.run("sed -n 's/.*seq=\\([0-9]*\\) .*/\\1/p' /log/card").split()
        assert echoes == [str(number) for number in range(len(echoes))]
        sent = int(self._guest.run("sed -n 's/ packets transmitted.*//p' /log/card"))
        assert sent - len(echoes) <= 1
        return len(echoes)
