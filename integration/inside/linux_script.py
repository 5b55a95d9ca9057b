# SPDX-License-Identifier: BSD-3-Clause
"""What a Linux guest sees of its PCI devices and does with them, as files to compare.

The guest writes one file a device and check, /seen/BDF/CHECK, and sends the folder as a tar archive
through a virtio serial port: nothing is lost among what firmware and kernel say on the console.
A device sits in the guest where it sits in the test machine: in the same slot, or behind a port of
the same number, where slot 0 is the only one.
"""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from integration import guest, qemu
from integration.guests_kernel import CARRIED
from vfio_user_bridge.qemu import arguments

#: what a guest saw, by BDF and check
Seen = dict[tuple[str, str], str]

MEMORY = "256M"
TIMEOUT = 1800.0  # for the guest, in seconds; it takes 300 to 600 on two cores

#: What disks begin with and what the guest writes to them: it has it as /content.
CONTENT_SIZE = 1 << 20  # bytes
READ_SIZE = 16 << 20  # bytes, by direct I/O

SCRIPT = r"""
lspci() { /bin/ld-linux-x86-64.so.2 --library-path /bin /bin/lspci "$@"; }
crc() { crc32 | cut -c 1-8; } # of all tools that busybox has, the one that takes least

# Each check is of the function in this folder: /sys/bus/pci/devices/BDF. To start a program takes
# a guest of a guest up to a second; so the shell does itself what it can.

resource() { cat $here/resource; }
rom() { # its beginning; to read all of it, a few bytes at a time, takes the guest half a minute
    echo 1 >$here/rom
    head -c 16384 $here/rom | crc
    echo 0 >$here/rom
}
driver() { link=$(readlink $here/driver); echo ${link##*/}; }

content() { dd if=$disk bs=$SIZE skip=$1 count=1 iflag=direct 2>/dev/null | crc; }
disk() { # all of it past the page cache
    for try in $(seq 600); do
        disk=$(ls -l /sys/block | grep -o "/$bdf/.*") && break
        sleep 0.1
    done
    disk=/dev/${disk##*/}
    echo "$(blockdev --getsize64 $disk) bytes"
    dd if=$disk of=/dev/null bs=1M count=$(($READ >> 20)) iflag=direct 2>&1 | grep records
    echo "machine's: $(content 0)"
    dd if=/content of=$disk bs=64k seek=$(($PLACE >> 16)) conv=fsync 2>&1 | grep records
    echo "guest's: $(content $(($PLACE / $SIZE)))"
}

card() { # from an address of its own, to the gateway: within a frame, and in fragments
    set -- $here/net/*
    for try in $(seq 300); do read carrier <$1/carrier; [ "$carrier" = 1 ] && break; sleep 0.1; done
    read address <$1/address
    echo "${1##*/}: $address, carrier $carrier"
    for size in 56 1400 6000; do
        echo "$size: $(ping -I ${1##*/} -c 3 -i 0.2 -W 20 -s $size 10.0.2.2 | grep transmitted)"
    done
}

edu() { # identification, liveness (inverts what is written), factorial
    echo 1 >$here/enable
    read at _ <$here/resource
    devmem $at 32
    devmem $(($at + 0x4)) 32 0x12345678
    devmem $(($at + 0x4)) 32
    devmem $(($at + 0x8)) 32 10
    until [ $(($(devmem $(($at + 0x20)) 32) & 1)) = 0 ]; do sleep 0.1; done
    devmem $(($at + 0x8)) 32
}

interrupts() {
    read number <$here/irq
    if [ -d $here/msi_irqs ]; then grep -F "$bdf " /proc/interrupts
    else grep "^ *$number:" /proc/interrupts
    fi
}

uptime() { read seconds _ </proc/uptime; echo "$seconds $*"; } # on the console, for who waits

uptime links
echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore # no card answers for another
number=10
for card in /sys/bus/pci/devices/*/net/*; do
    number=$(($number + 1))
    ip link set ${card##*/} up
    ip addr add 10.0.2.$number/24 dev ${card##*/}
done

mkdir -p /seen/guest $(cut -d" " -f1 /checks | sort -u | sed s,^,/seen/,)
while read bdf check; do
    uptime $bdf $check
    here=/sys/bus/pci/devices/$bdf
    $check >/seen/$bdf/$check 2>&1
done </checks

uptime lspci
lspci -D -vvv -xxxx >/seen/guest/lspci 2>&1
# Once more at rest: QEMU's e1000e keeps its rings across the PM reset that it claims to have, and
# would fill them in the next guest's memory.
for card in /sys/class/net/eth*; do ip link set ${card##*/} down; done
dmesg -r | grep '^<[0-4]>' >/seen/guest/log
uptime seen
tar c -C /seen -f - . >/dev/vport0p1
"""


def program(path: str) -> dict[str, bytes]:
    """Return a dynamically linked program as files of an initramfs, with all that it loads.

    All of it is in bin/, which the initramfs has; so the script must name the loader.
    """
    listed = subprocess.run(("ldd", path), capture_output=True, text=True, check=True).stdout
    paths = [Path(word) for word in (path, *listed.split()) if word.startswith("/")]
    return {f"bin/{file.name}": file.read_bytes() for file in paths}


def there(bdf: str) -> str:
    """Return a device's address in the guest: the machine's, but for virtual functions'."""
    domain, bus, _slot, function = re.split("[:.]", bdf)
    return bdf if bus == "00" else f"{domain}:{bus}:00.{function}"


def place(bdf: str) -> dict[str, str]:
    """Return a device's place in the guest, as properties of -device."""
    _domain, bus, slot_function = there(bdf).split(":")
    return {"bus": "pcie.0" if bus == "00" else f"port{int(bus, 16)}", "addr": slot_function}


def boot(
    devices: Mapping[str, Mapping[str, object]],
    checks: Sequence[tuple[str, str]],
    content: bytes,
    content_place: int,
    results: Path,
) -> Seen:
    """Boot a guest with `devices`; return what it saw, by BDF and check.

    :param devices: by BDF, the properties of -device but for the place.
    :param checks: BDF and name of a function of SCRIPT, in the order to make them.
    :param content: what to write to disks, and `content_place` where, in bytes.
    :param results: a folder for what QEMU and the guest say.
    """
    script = f"SIZE={len(content)} PLACE={content_place} READ={READ_SIZE}\n{SCRIPT}"
    listed = "".join(f"{there(bdf)} {check}\n" for bdf, check in checks)
    files = {**program("/usr/bin/lspci"), "content": content, "checks": listed.encode()}
    with tempfile.NamedTemporaryFile() as initramfs:
        initramfs.write(guest.initramfs(script, files=files))
        initramfs.flush()
        command = [
            *qemu.find(),
            *guest.boot_arguments(CARRIED, Path(initramfs.name)),
            *arguments([], MEMORY),
            *("-device", "virtio-serial-pci,addr=2.0", "-device", "virtserialport,chardev=seen"),
            *("-chardev", f"file,id=seen,path={results / 'seen.tar'}"),
            *("-serial", f"file:{results / 'console'}"),
        ]
        for number in sorted({int(bdf.split(":")[1], 16) for bdf in devices} - {0}):
            port = f"pcie-root-port,id=port{number},chassis={number},addr={0x17 + number:x}.0"
            command += ["-device", port]
        for bdf, properties in devices.items():
            command += ["-device", json.dumps({**properties, **place(bdf)})]
        with (results / "qemu").open("w") as log:
            subprocess.run(
                command, stdin=subprocess.DEVNULL, stderr=log, timeout=TIMEOUT, check=True
            )
    seen = _unpack(results / "seen.tar", {there(bdf): bdf for bdf in devices})
    return {**seen, ("qemu", "log"): (results / "qemu").read_text()}


def _unpack(archive: Path, here: Mapping[str, str]) -> Seen:
    """Read what the guest sent; what it calls a device is `here` what the machine calls it."""
    seen = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file:
                _here, device, check = member.name.split("/")
                seen[here.get(device, device), check] = file.read().decode()
    for paragraph in seen.pop(("guest", "lspci")).split("\n\n"):
        device = paragraph.split(" ")[0]
        seen[here.get(device, device), "lspci"] = f"{paragraph}\n"
    return seen
