# SPDX-License-Identifier: BSD-3-Clause
"""Linux guests made of the tree's kernel, busybox and a shell script.

They boot in seconds under TCG: the kernel is uncompressed and entered by PVH, the initramfs has
only what the script needs. The same code serves on the host, where the tree is in the cache, and
in the test machine, where the tree is the root file system.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from integration.tree import kernel_release

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ROOT = Path("/")
NO_FILES: Mapping[str, bytes] = {}

# What makes a boot under TCG short: each of these leaves out work that costs a second or more in
# a guest of a guest, and none changes what a driver does. A panic ends QEMU.
KERNEL_ARGUMENTS = " ".join(
    (
        "console=ttyS0 quiet loglevel=3 panic=-1 nokaslr tsc=reliable no_timer_check",
        "mitigations=off init_on_alloc=0 rodata=off lsm=landlock audit=0 ipv6.disable=1 numa=off",
        "noreplace-smp random.trust_cpu=on cryptomgr.notests",
        "initcall_blacklist=jent_mod_init,load_system_certificate_list,init_encrypted",
    )
)

# What newer processors have is emulated too, and costs a third more time: strings moved by the byte
# (ERMS, FSRM), five levels of page tables. But random numbers, which the kernel would gather.
CPU = "Nehalem,+rdrand"

INIT = b"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in /modules/*; do [ -e "$module" ] && insmod "$module"; done
. /script
poweroff -f
"""


class Entry(NamedTuple):
    """One file of a cpio archive: `mode` as in stat(2), `device` as (major, minor)."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def boot_arguments(kernel: Path, initramfs: Path, append: str = "") -> list[str]:
    """Return QEMU's arguments to boot `kernel`, without those for machine type and memory.

    :param append: further kernel arguments.
    """
    return [
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-accel", "tcg,thread=multi", "-cpu", CPU),
        *("-kernel", str(kernel), "-initrd", str(initramfs)),
        *("-append", f"{KERNEL_ARGUMENTS} {append}"),
    ]


def initramfs(
    script: str,
    modules: Sequence[str] = (),
    files: Mapping[str, bytes] = NO_FILES,
    tree: Path = ROOT,
) -> bytes:
    """Return an initramfs that loads `modules`, runs `script` as process 1 and powers off.

    The script is read by busybox sh, with /dev, /proc and /sys mounted; it may exec. What it
    prints goes to the console.

    :param modules: names of kernel modules; what they depend on is loaded before them.
    :param files: further files, by their path without the leading slash.
    :raise KeyError: the tree has no such module.
    """
    entries = [
        *(Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "proc", "sys", "mnt")),
        Entry("modules", stat.S_IFDIR | 0o755),
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        Entry("bin/busybox", stat.S_IFREG | 0o755, (tree / "usr/bin/busybox").read_bytes()),
        Entry("init", stat.S_IFREG | 0o755, INIT),
        Entry("script", stat.S_IFREG | 0o644, script.encode()),
    ]
    for number, path in enumerate(_in_load_order(modules, tree)):
        name = f"modules/{number:03}-{path.name}"  # the shell's * sorts by name
        entries.append(Entry(name, stat.S_IFREG | 0o644, path.read_bytes()))
    entries += (Entry(name, stat.S_IFREG | 0o755, data) for name, data in files.items())
    return _newc(entries)


def _in_load_order(modules: Iterable[str], tree: Path) -> list[Path]:
    """Return the files of `modules` and of all that they depend on, dependencies first."""
    folder = tree / "usr/lib/modules" / kernel_release(tree)
    dependencies: dict[str, list[str]] = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        # modules.dep lists what a module needs from the nearest to the deepest.
        dependencies[_module_name(path)] = [*reversed(needs.split()), path]
    wanted = (path for module in modules for path in dependencies[_module_name(module)])
    return [folder / path for path in dict.fromkeys(wanted)]


def _module_name(path: str) -> str:
    return Path(path).name.removesuffix(".ko").replace("-", "_")


def _newc(entries: Iterable[Entry]) -> bytes:
    """Return a cpio archive in "newc" format (the kernel's buffer-format.rst)."""
    archive = bytearray()
    for inode, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.name.encode() + b"\0"
        fields = (
            inode,
            entry.mode,
            *(0, 0),  # uid, gid
            1,  # links
            0,  # mtime
            len(entry.data),
            *(0, 0),  # major, minor of the device that the file came from
            *entry.device,
            len(name),
            0,  # checksum, of another format
        )
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        archive += bytes(-len(archive) % 4)
        archive += entry.data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)
