# SPDX-License-Identifier: BSD-3-Clause
"""One device, one bridge, one unmodified QEMU, one Linux guest: run it and say what happened.

    python -m integration.passthrough BDF OUTCOME

runs the guest that uses an NVMe disk, in the test machine; the demo does so. The guest speaks to
us in lines on its console, `demo: NAME VALUE`; `demo: begin` and `demo: end` are around its I/O.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from integration import guest, qemu
from integration.progress import Step, StepError
from integration.tree import KERNEL
from vfio_user_bridge.qemu import arguments

if TYPE_CHECKING:
    from collections.abc import Iterator

BRIDGE = (sys.executable, "-m", "vfio_user_bridge")
MEMORY = "512M"
TIMEOUT = 300.0  # for the guest, in seconds
READY = "ready on"
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

NVME_MODULES = ("nvme", "crc32c_generic", "ext4")
NVME_SCRIPT = """
say() { echo "demo: $*"; }
sum() { sha256sum "$1" | cut -d' ' -f1; }

until [ -b /dev/nvme0n1 ]; do sleep 0.1; done
say begin
mount -t ext4 /dev/nvme0n1 /mnt
say known $(sum /mnt/known)
dd if=/dev/urandom of=/made bs=1M count=8 2>/dev/null
cp /made /mnt/made
sync
echo 3 >/proc/sys/vm/drop_caches
say made $(sum /made)
say read_back $(sum /mnt/made)
umount /mnt
say end
set -- $(cat /sys/block/nvme0n1/stat)
say bytes_read $(($3 * 512))
say bytes_written $(($7 * 512))
say interrupts $(awk '/nvme/ {sum += $2} END {print sum}' /proc/interrupts)
grep nvme /proc/interrupts
"""

LIST_SCRIPT = """
echo "demo: begin"
cd /sys/bus/pci/devices
for bdf in *; do
    echo "$bdf: class $(cat $bdf/class), vendor $(cat $bdf/vendor), device $(cat $bdf/device)"
done
echo "BARs of 0000:00:01.0, the device passed through: first, last, flags"
grep -v '^0x0* 0x0* 0x0*$' 0000:00:01.0/resource
echo "demo: end"
"""


class PassthroughError(Exception):
    """The bridge or the guest did not do its part. The text is for the operator."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened, in numbers."""

    device: str
    iommu_group: int
    #: what the guest said, by name
    guest: dict[str, str]
    #: messages that the bridge handled, by command
    messages: dict[str, int]
    #: how long the guest's I/O took, in seconds
    io_seconds: float
    #: CPU time that the bridge used meanwhile, and from its start to its end, in seconds
    io_cpu: float
    total_cpu: float

    def save(self, path: Path) -> None:
        """Write this to the file `path`."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Outcome:
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text()))


def run(
    bdf: str,
    script: str,
    modules: tuple[str, ...],
    tree: Path = guest.ROOT,
    engine: str = "native",
) -> Outcome:
    """Give device `bdf` to a guest that loads `modules` and runs `script`; `engine` serves it.

    The device gets back the driver it had.

    :raise PassthroughError: the bridge or the guest failed, or the guest hung.
    :raise StepError: there is no QEMU and it can't be built.
    """
    group = int(Path(f"/sys/bus/pci/devices/{bdf}/iommu_group").resolve().name)
    with tempfile.TemporaryDirectory() as scratch:
        socket, log = Path(scratch, "bridge.sock"), Path(scratch, "bridge.log")
        initramfs = Path(scratch, "initramfs")
        initramfs.write_bytes(guest.initramfs(script, modules, tree=tree))
        command = [
            *qemu.find(),
            *guest.boot_arguments(tree / KERNEL, initramfs),
            *arguments([socket], MEMORY),
            *("-serial", "stdio"),
        ]
        with _bound(bdf), _bridge(bdf, socket, log, engine) as bridge:
            said, marks = _guest(command, bridge)
            total_cpu = _cpu_seconds(bridge)
        sys.stdout.write(log.read_text())
        (begin, cpu_begin), (end, cpu_end) = marks["begin"], marks["end"]
        return Outcome(
            device=bdf,
            iommu_group=group,
            guest=said,
            messages=_messages(log.read_text()),
            io_seconds=end - begin,
            io_cpu=cpu_end - cpu_begin,
            total_cpu=total_cpu,
        )


@contextmanager
def _bound(bdf: str) -> Iterator[None]:
    """Have the device bound to vfio-pci, and give it back if it wasn't before."""
    driver = Path(f"/sys/bus/pci/devices/{bdf}/driver")
    if driver.exists() and driver.resolve().name == "vfio-pci":
        yield
        return
    _run(*BRIDGE, "bind", bdf)
    try:
        yield
    finally:
        _run(*BRIDGE, "unbind", bdf)


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise PassthroughError(f"{' '.join(command)} failed with status {done.returncode}")


@contextmanager
def _bridge(bdf: str, socket: Path, log: Path, engine: str) -> Iterator[subprocess.Popen[str]]:
    """Serve the device on `socket`, with the bridge's log in the file `log`."""
    serve = ("serve", bdf, "--socket-path", str(socket), "--engine", engine)
    with (
        log.open("w") as errors,
        subprocess.Popen(
            (*BRIDGE, *serve), stdout=subprocess.PIPE, stderr=errors, text=True
        ) as bridge,
    ):
        assert bridge.stdout is not None
        ready = bridge.stdout.readline()
        if READY not in ready:
            raise PassthroughError(f"the bridge didn't start: {log.read_text().strip()}")
        sys.stdout.write(ready)
        try:
            yield bridge
        finally:
            bridge.terminate()
            bridge.wait()


def _guest(
    command: list[str], bridge: subprocess.Popen[str]
) -> tuple[dict[str, str], dict[str, tuple[float, float]]]:
    """Run the guest; return what it said, and the time and the bridge's CPU time at each mark."""
    said: dict[str, str] = {}
    marks: dict[str, tuple[float, float]] = {}
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as machine:
        timer = threading.Timer(TIMEOUT, machine.kill)
        timer.start()
        try:
            assert machine.stdout is not None
            lines = (line.rstrip() for line in machine.stdout)
            with Step("QEMU starts; firmware and Linux boot in the guest"):
                early = _until_begin(lines)
            marks["begin"] = (time.monotonic(), _cpu_seconds(bridge))
            for line in (*early, *lines):
                print(f"  guest: {line}", flush=True)
                words = line.split()
                if words[:1] == ["demo:"]:
                    said[words[1]] = " ".join(words[2:])
                    if words[1] == "end":
                        marks["end"] = (time.monotonic(), _cpu_seconds(bridge))
        finally:
            timer.cancel()
            machine.kill()
    if "end" not in marks:
        raise PassthroughError("the guest ended, or was stopped as hung, before it was done")
    return said, marks


def _until_begin(lines: Iterator[str]) -> list[str]:
    early = []
    for line in lines:
        early.append(line)
        if line == "demo: begin":
            return early
    raise PassthroughError("\n".join(["QEMU ended before the guest was up; it said:", *early]))


def _cpu_seconds(process: subprocess.Popen[str]) -> float:
    """Return the CPU time that `process` has used, from /proc/PID/stat (proc(5))."""
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    fields = stat.rpartition(")")[2].split()  # from the third field on
    utime, stime = fields[11:13]
    return (int(utime) + int(stime)) / CLOCK_TICKS


def _messages(log: str) -> dict[str, int]:
    """Return the counts in the bridge's line about the session that ended."""
    counts = re.search(r"client gone after .* messages \((.*?)\)", log)
    if not counts:
        return {}
    return {name: int(count) for name, count in re.findall(r"(\w+) (\d+)", counts[1])}


def main() -> int:
    """Run the NVMe guest in the test machine and save the outcome; return the exit status."""
    bdf, outcome = sys.argv[1:]
    try:
        run(bdf, NVME_SCRIPT, NVME_MODULES).save(Path(outcome))
    except (PassthroughError, StepError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
