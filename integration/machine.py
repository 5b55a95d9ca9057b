# SPDX-License-Identifier: BSD-3-Clause
"""The test machine: a virtual machine with an IOMMU, where kernel VFIO is real.

It boots the tree, by TCG so that it runs anywhere, with emulated devices to assign. The checkout
is its /checkout, a folder of the host is its /results, and what it writes anywhere but there is
thrown away. Its process 1 is a script, or systemd with all that it starts on a Debian host, and the
product installed from its wheel.

    python -m integration.machine [--systemd] [--images] [--kernel] [--device DEVICE]...
        -- COMMAND...
    python -m integration.machine [--systemd] --shell
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from integration import cache, containers, guest, guests_kernel, library, qemu, tree, wheel
from integration.devices import standard
from integration.progress import LoggedStep, StepError, tail

if TYPE_CHECKING:
    from collections.abc import Sequence

CHECKOUT = Path(__file__).resolve().parent.parent
DISK_SIZE = "4G"
MKE2FS_OPTIONS = ("-O", "^has_journal", "-E", "lazy_itable_init=1")
MEMORY_MIB = 4096
TIMEOUT = 900.0

MODULES = ("virtio_blk", "crc32c_generic", "ext4", "9p", "9pnet_virtio", "overlay")
SHARE_OPTIONS = "trans=virtio,version=9p2000.L,msize=262144"
#: what is written there stays in the machine, and ends with it
OVERLAY = "lowerdir=/checkout,upperdir=/mnt/written/new,workdir=/mnt/written/work"
SCRIPT = "/checkout/integration/machine-init"
SYSTEMD = "/usr/lib/systemd/systemd"
#: the system that systemd brings up, on the kernel's command line
SYSTEMD_ARGUMENTS = (
    " systemd.unit=machine.service systemd.mask=serial-getty@ttyS0.service"
    " modules_load=vfio-pci,vfio_iommu_type1 systemd.hostname=machine"
    # As on Debian, but for the profiles of programs that aren't here, which take long to load.
    " lsm=landlock,apparmor systemd.mask=apparmor.service"
)
ROOT_SCRIPT = f"""
mount -t ext4 /dev/vda /mnt
mkdir -p /checkout /mnt/checkout /mnt/results /mnt/written/new /mnt/written/work
mount -t 9p -o ro,cache=loose,{SHARE_OPTIONS} checkout /checkout
# Bytecode, above all: to compile the bridge takes as long as all else of its start.
mount -t overlay -o {OVERLAY} checkout /mnt/checkout
mount -t 9p -o {SHARE_OPTIONS} results /mnt/results
cp /mnt/checkout/integration/machine.service /mnt/etc/systemd/system
umount /sys /proc /dev
exec switch_root /mnt $init
"""


class MachineError(Exception):
    """The machine didn't carry the command to its end. The text is for the operator."""


def image() -> Path:
    """Return the machine's disk in the cache, an ext4 image of the tree, built first if need be.

    :raise StepError: building failed.
    """
    root = tree.path()

    def build(part: Path, step: LoggedStep) -> None:
        step.run("mke2fs", "-q", "-t", "ext4", *MKE2FS_OPTIONS, "-d", root, part, DISK_SIZE)

    recipe = (root.name, DISK_SIZE, MKE2FS_OPTIONS)
    return cache.artefact("machine", "making the test machine's disk", recipe, build)


def run(
    command: Sequence[str],
    results: Path,
    *,
    devices: Sequence[str] = (),
    timeout: float = TIMEOUT,
    interactive: bool = False,
    remapping: bool = True,
    systemd: bool = False,
    images: bool = False,
    kernel: bool = False,
) -> int:
    """Run `command` in the machine, from the checkout's root as root; return its exit status.

    The console is shown while it runs, and is kept as console.log among the results.

    :param results: a folder, made if need be; the command sees it as /results and may write to it.
    :param devices: arguments for the machine's QEMU.
    :param timeout: seconds until the machine is stopped, boot included.
    :param interactive: hand over the terminal instead, without log or timeout.
    :param remapping: whether the IOMMU remaps interrupts; without, a device has one MSI vector.
    :param systemd: have systemd as process 1.
    :param images: have the container images among the results.
    :param kernel: have the guests' kernel there too.
    :raise MachineError: it hung, or ended before the command did.
    :raise StepError: the machine can't be built.
    """
    results.mkdir(parents=True, exist_ok=True)
    status = results / "status"
    status.unlink(missing_ok=True)
    # The console is a terminal to the command, whatever it is here.
    term = os.environ.get("TERM", "dumb") if sys.stdout.isatty() else "dumb"
    exports = {"TERM": term, **library.carry(results / "library", Path("/results/library"))}
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in exports.items()]
    (results / "command").write_text("".join(lines) + shlex.join(command) + "\n")
    if systemd:
        wheel.build(results)
    if images:
        containers.carry(results)
    if kernel:
        guests_kernel.carry(results)
    with tempfile.TemporaryDirectory() as scratch:
        initramfs = Path(scratch, "initramfs")
        script = f"init={SYSTEMD if systemd else SCRIPT}\n{ROOT_SCRIPT}"
        initramfs.write_bytes(guest.initramfs(script, MODULES, tree=tree.path()))
        arguments = [*qemu.find(), *_arguments(initramfs, results, remapping, systemd), *devices]
        if interactive:
            subprocess.run([*arguments, "-serial", "mon:stdio"], check=False)
        else:
            _watch([*arguments, "-serial", "stdio"], results / "console.log", timeout)
    if not status.exists():
        raise MachineError(_with_console("the test machine ended before the command did", results))
    return int(status.read_text())


def _arguments(initramfs: Path, results: Path, remapping: bool, systemd: bool) -> list[str]:
    append = "intel_iommu=on"
    if systemd:
        append += SYSTEMD_ARGUMENTS
    if not remapping:
        append += " vfio_iommu_type1.allow_unsafe_interrupts=1"
    iommu = f"intel-iommu,intremap={'on' if remapping else 'off'},aw-bits=48"
    drive = f"if=none,id=root,format=raw,snapshot=on,file={image()}"
    return [
        *guest.boot_arguments(tree.path() / tree.KERNEL, initramfs, append),
        *("-machine", "q35", "-smp", "2", "-m", str(MEMORY_MIB)),
        *("-device", iommu),
        *("-drive", drive, "-device", "virtio-blk-pci,drive=root,addr=2.0"),
        *_share("checkout", f"{CHECKOUT},readonly=on", "3.0"),
        *_share("results", str(results.resolve()), "4.0"),
        *_monitor(initramfs.with_name("qmp")),
    ]


def _monitor(socket: Path) -> list[str]:
    """Let the machine command its own QEMU: its virtio port is a QMP monitor.

    What happens to hardware from outside, such as an error on a PCIe link, is made that way.
    """
    return [
        *("-qmp", f"unix:{socket},server=on,wait=off"),
        *("-chardev", f"socket,id=monitor,path={socket}"),
        *("-device", "virtio-serial-pci,addr=5.0", "-device", "virtserialport,chardev=monitor"),
    ]


def _share(tag: str, path: str, address: str) -> list[str]:
    return [
        *("-fsdev", f"local,id={tag},security_model=none,path={path}"),
        *("-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag},addr={address}"),
    ]


def _watch(command: Sequence[str], log: Path, timeout: float) -> None:
    """Run the machine's QEMU, its console copied to standard output and to the file `log`."""
    hung = threading.Event()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as machine:

        def stop() -> None:
            hung.set()
            machine.kill()

        timer = threading.Timer(timeout, stop)
        timer.start()
        try:
            assert machine.stdout is not None
            with log.open("wb", buffering=0) as file:
                while chunk := os.read(machine.stdout.fileno(), 65536):
                    text = chunk.replace(b"\r\n", b"\n")
                    file.write(text)
                    sys.stdout.buffer.write(text)
                    sys.stdout.flush()
        finally:
            timer.cancel()
            machine.kill()
    if hung.is_set():
        raise MachineError(
            _with_console(f"the test machine was stopped after {timeout:.0f} s", log.parent)
        )


def _with_console(message: str, results: Path) -> str:
    log = results / "console.log"
    return f"{message}; the end of its console:\n{tail(log)}" if log.exists() else message


def end_on_sigterm() -> None:
    """Let SIGTERM end this process as ^C does: whoever started a QEMU ends it too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def main() -> int:
    """Run a command in the machine, with the standard devices; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m integration.machine", description="Run a command in the test machine."
    )
    parser.add_argument("--shell", action="store_true", help="a shell on this terminal")
    parser.add_argument(
        "--device", action="append", default=[], help="a further device, as QEMU's -device"
    )
    parser.add_argument(
        "--no-remapping", action="store_true", help="an IOMMU that doesn't remap interrupts"
    )
    parser.add_argument("--systemd", action="store_true", help="systemd as process 1")
    parser.add_argument("--images", action="store_true", help="the container images, in /results")
    parser.add_argument("--kernel", action="store_true", help="the guests' kernel, there too")
    parser.add_argument("--results", type=Path, help="the folder to be /results")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="in seconds (%(default)s)")
    parser.add_argument("command", nargs="*")
    options = parser.parse_args()
    end_on_sigterm()
    if bool(options.command) == options.shell:
        parser.error("give a command, or --shell")
    command = ["bash", "-i"] if options.shell else options.command
    with tempfile.TemporaryDirectory() as scratch:
        extra = [word for device in options.device for word in ("-device", device)]
        try:
            return run(
                command,
                options.results or Path(scratch),
                devices=[*standard(Path(scratch)), *extra],
                timeout=options.timeout,
                interactive=options.shell,
                remapping=not options.no_remapping,
                systemd=options.systemd,
                images=options.images,
                kernel=options.kernel,
            )
        except (MachineError, StepError) as error:
            print(error, file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
