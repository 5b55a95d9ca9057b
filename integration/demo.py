# SPDX-License-Identifier: BSD-3-Clause
"""The demo: a guest of an unmodified QEMU drives an NVMe controller through the bridge.

It happens in the test machine, on real kernel VFIO and an emulated IOMMU and controller; the host
then looks for what the guest wrote in the controller's disk image. With DEVICE=0000:xx:yy.z in
the environment it happens on this host, with that device, and the guest only lists it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from integration import machine, passthrough, tree
from integration.devices import NVME, standard
from integration.passthrough import Outcome, PassthroughError
from integration.progress import ENVIRONMENT, LoggedStep, Step, StepError

if TYPE_CHECKING:
    from collections.abc import Sequence

DISK_SIZE = "64M"
KNOWN_SIZE = 4 << 20
TIMEOUT = 420.0  # for the test machine, in seconds


def main() -> int:
    """Run the demo; return the exit status, 0 if all that it shows is true."""
    started = time.monotonic()
    machine.end_on_sigterm()
    device = os.environ.get("DEVICE")
    try:
        checks = _on_host(device) if device else _in_machine()
    except (StepError, machine.MachineError, PassthroughError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print(f"\n  Done in {time.monotonic() - started:.0f} s.")
    return 0 if checks else 1


def _on_host(bdf: str) -> bool:
    if not Path(f"/sys/bus/pci/devices/{bdf}").exists():
        raise PassthroughError(f"no PCI device {bdf} on this host; find it with lspci -D")
    if not Path(f"/sys/bus/pci/devices/{bdf}/iommu_group").exists():
        raise PassthroughError(
            f"{bdf} has no IOMMU group; turn the IOMMU on in the firmware and the kernel "
            "(intel_iommu=on)"
        )
    outcome = passthrough.run(bdf, passthrough.LIST_SCRIPT, (), tree.path())
    _print_table(_figures(outcome))
    return True


def _in_machine() -> bool:
    machine.image()  # so that its steps come before the scene is set
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch)
        disk = results / "nvme"
        known = os.urandom(KNOWN_SIZE)
        _make_disk(disk, known, results / "log")
        print(f"  A test machine with an IOMMU boots; its NVMe controller is {NVME}.", flush=True)
        inner = (
            "modprobe nvme && exec python3 -m integration.passthrough",
            NVME,
            "/results/outcome",
        )
        status = machine.run(
            ["sh", "-c", " ".join(inner)], results, devices=standard(results), timeout=TIMEOUT
        )
        if status:
            raise PassthroughError(f"the part in the test machine failed with status {status}")
        outcome = Outcome.load(results / "outcome")
        said = outcome.guest
        known_sum = hashlib.sha256(known).hexdigest()
        with Step("the host looks into the disk image"):
            found = _sum_in_image(disk, "made", results / "made")
            clean = not _e2fsck(disk)
        checks = {
            "the guest read the file that the host had put on the disk": said.get("known")
            == known_sum,
            "the guest read back what it had written": said.get("read_back") == said.get("made"),
            "the host finds in the image what the guest wrote": found == said.get("made"),
            "the file system is clean": clean,
        }
        _print_table(_figures(outcome))
        for what, true in checks.items():
            print(f"  {'yes' if true else 'NO '}  {what}")
        return all(checks.values())


def _make_disk(disk: Path, known: bytes, log: Path) -> None:
    """Make an ext4 image with the file `known` in it."""
    content = disk.with_name("content")
    content.mkdir()
    (content / "known").write_bytes(known)
    with LoggedStep("making an NVMe disk with a file on it", log) as step:
        step.run("mke2fs", "-q", "-t", "ext4", "-d", content, disk, DISK_SIZE)


def _sum_in_image(disk: Path, name: str, copy: Path) -> str:
    """Return the SHA-256 of file `name` in the image, read without mounting it."""
    _tool("debugfs", "-R", f"dump /{name} {copy}", str(disk))
    return hashlib.sha256(copy.read_bytes()).hexdigest() if copy.exists() else "no such file"


def _e2fsck(disk: Path) -> int:
    return _tool("e2fsck", "-f", "-n", str(disk))


def _tool(*command: str) -> int:
    return subprocess.run(command, capture_output=True, env=ENVIRONMENT, check=False).returncode


def _figures(outcome: Outcome) -> list[tuple[str, str]]:
    """Return the rows of the table; a guest that only lists its devices has nothing of I/O."""
    messages, said = outcome.messages, outcome.guest
    busiest = sorted(messages.items(), key=lambda item: -item[1])[:4]
    rows = [
        ("device", outcome.device),
        ("IOMMU group", str(outcome.iommu_group)),
        ("DMA maps", str(messages.get("DMA_MAP", 0))),
        ("messages handled", f"{sum(messages.values()):,}"),
        ("  most of them", ", ".join(f"{name} {count}" for name, count in busiest)),
        ("bridge CPU, whole run", f"{outcome.total_cpu:.2f} s"),
    ]
    if "interrupts" in said:
        rows += [
            ("interrupts delivered", said["interrupts"]),
            ("bytes read", f"{int(said['bytes_read']):,}"),
            ("bytes written", f"{int(said['bytes_written']):,}"),
            ("guest I/O took", f"{outcome.io_seconds:.1f} s"),
            ("bridge CPU meanwhile", f"{outcome.io_cpu:.2f} s"),
        ]
    return rows


def _print_table(rows: Sequence[tuple[str, str]]) -> None:
    print("\n  A guest drove a device through vfio-user-bridge, with an unmodified QEMU\n")
    for name, value in rows:
        print(f"  {name:<26}{value}")
    print()


if __name__ == "__main__":
    sys.exit(main())
