# SPDX-License-Identifier: BSD-3-Clause
"""Which QEMU to run: one that has vfio-user-pci."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess

from integration import tree

BINARY = "qemu-system-x86_64"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
FIRMWARE = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")


@functools.cache
def find() -> tuple[str, ...]:
    """Return the command for a qemu-system-x86_64 with vfio-user-pci, to put arguments behind.

    It is $QEMU if that is set, else the one on PATH if it has the device, else the tree's, which
    may take a minute to install.

    :raise StepError: the tree can't be built.
    """
    chosen = os.environ.get("QEMU")
    if chosen:
        return tuple(shlex.split(chosen))
    if shutil.which(BINARY) and _has_vfio_user(BINARY):
        return (BINARY,)
    return _from_tree()


def _has_vfio_user(binary: str) -> bool:
    devices = subprocess.run(
        [binary, "-device", "help"], capture_output=True, text=True, check=False
    )
    return '"vfio-user-pci"' in devices.stdout


def _from_tree() -> tuple[str, ...]:
    """Run the tree's QEMU on the host's kernel, without a chroot, so that paths mean the same.

    Its own loader and libraries come with it; firmware and modules are at compiled-in paths
    that must be replaced.
    """
    root = tree.path()
    firmware = [word for folder in FIRMWARE for word in ("-L", str(root / folder))]
    return (
        "env",
        f"QEMU_MODULE_DIR={root / LIBRARIES / 'qemu'}",
        str(root / "lib64/ld-linux-x86-64.so.2"),
        "--library-path",
        str(root / LIBRARIES),
        str(root / "usr/bin" / BINARY),
        *firmware,
    )
