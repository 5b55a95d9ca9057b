# SPDX-License-Identifier: BSD-3-Clause
"""The Debian trixie tree: a folder with the QEMU, kernel and Python that the tests run on.

Debian 12's QEMU has no vfio-user-pci and trixie-backports' does. It is never installed on the
host: the tree is the test machine's root file system, and its QEMU runs from there on the host
too (see `qemu`). Its kernel is prepared for booting under TCG, where decompressing is slow: the
modules lie there uncompressed, and so does the kernel itself, as /boot/vmlinux.
"""

from __future__ import annotations

import lzma
import struct
from typing import TYPE_CHECKING

from integration import cache
from integration.debian import KEYRING, SUITE, host_packages, mirror
from integration.progress import StepError

if TYPE_CHECKING:
    from pathlib import Path

    from integration.progress import LoggedStep

BACKPORTS = f"{SUITE}-backports"

HOST_TOOLS = {  # command: the Debian package that has it
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "zstd": "zstd",
}

PACKAGES = (
    "qemu-system-x86",
    "linux-image-amd64",
    "linux-libc-dev",
    "tiny-initramfs",  # the kernel wants an initramfs builder: this one needs no udev, no systemd
    "busybox-static",
    "e2fsprogs",
    "iproute2",
    "kmod",
    "mount",
    *("libvirt-daemon-system", "libvirt-clients", "apparmor"),
    *("podman", "crun", "podman-compose"),
    "pci.ids",
    "pciutils",
    "procps",
    "python3",
    "python3-pip",
    *("python3-pytest", "python3-pytest-timeout"),
    *("python3-msgpack", "python3-prometheus-client", "python3-seccomp"),
    "strace",
    *("systemd-sysv", "udev", "dbus"),
)

PREFERENCES = f"""\
Package: src:qemu seabios linux-libc-dev
Pin: release n={BACKPORTS}
Pin-Priority: 990
"""

# Only these of the kernel's 4,000 modules: the devices that the tests assign, and what the test
# machine and its guests boot from.
MODULES = (
    "arch",
    "crypto",
    "drivers/block",
    "drivers/dca",
    "drivers/i2c",
    "drivers/iommu",
    "drivers/net/ethernet/intel",
    "drivers/net/ethernet/realtek",
    "drivers/net/mdio",
    "drivers/net/mii.ko",
    "drivers/net/phy",
    "drivers/nvme/common",
    "drivers/nvme/host",
    "drivers/pps",
    "drivers/ptp",
    "drivers/scsi",
    "drivers/usb/common",
    "drivers/usb/core",
    "drivers/usb/host",
    "drivers/usb/storage",
    "drivers/vfio",
    "drivers/virtio",
    "fs/9p",
    "fs/autofs",
    "fs/binfmt_misc.ko",
    "fs/ext4",
    "fs/jbd2",
    "fs/mbcache.ko",
    "fs/netfs",
    "fs/overlayfs",
    "lib",
    "net/9p",
    "virt",
)

DPKG_PATHS = (
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/etc/kernel/postinst.d/tiny-initramfs",
    "path-exclude=*/lib/modules/*.ko.xz",
    *(f"path-include=*/lib/modules/*/kernel/{module}*" for module in MODULES),
)

# Offsets in a bzImage's setup header (the kernel's Documentation/arch/x86/boot.rst).
SETUP_SECTS = 0x1F1
PAYLOAD_OFFSET = 0x248
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

KERNEL = "boot/vmlinux"  # Debian's, not compressed, so that QEMU enters it by PVH

EDITION = 1  # part of the tree's fingerprint: raise it when code below changes what is built


def path() -> Path:
    """Return the tree's folder in the cache, built first unless it is there.

    :raise StepError: the host lacks what building takes, or a download failed.
    """
    recipe = (SUITE, PACKAGES, PREFERENCES, DPKG_PATHS, EDITION)
    return cache.artefact("tree", f"installing Debian {SUITE} with QEMU", recipe, _build)


def kernel_release(tree: Path) -> str:
    """Return the release of the tree's kernel, as uname -r would say it."""
    return next((tree / "usr/lib/modules").iterdir()).name


def _build(part: Path, step: LoggedStep) -> None:
    host_packages(step, HOST_TOOLS)
    debian = mirror(step)
    options = [f"--dpkgopt={option}" for option in ("force-unsafe-io", *DPKG_PATHS)]
    step.run(
        "mmdebstrap",
        "--mode=root",
        "--variant=essential",
        "--format=directory",
        "--architectures=amd64",
        '--aptopt=APT::Install-Recommends "false"',
        *options,
        f"--setup-hook=printf %s '{PREFERENCES}' >\"$1/etc/apt/preferences\"",
        f"--include={','.join(PACKAGES)}",
        SUITE,
        part,
        f"deb [signed-by={KEYRING}] {debian} {SUITE} main",
        f"deb [signed-by={KEYRING}] {debian} {BACKPORTS} main",
    )
    # Fails here and now if the pin above has let in another QEMU.
    step.run("chroot", part, "qemu-system-x86_64", "-device", "vfio-user-pci,help")
    _unpack_kernel(part, step)


def _unpack_kernel(tree: Path, step: LoggedStep) -> None:
    release = kernel_release(tree)
    for packed in (tree / "usr/lib/modules" / release).rglob("*.ko.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    step.run("chroot", tree, "depmod", release)

    image = (tree / f"boot/vmlinuz-{release}").read_bytes()
    offset, length = struct.unpack_from("<II", image, PAYLOAD_OFFSET)
    start = (image[SETUP_SECTS] + 1) * 512 + offset
    # The payload's last four bytes are its uncompressed size, which is not zstd's.
    payload = image[start : start + length - 4]
    if not payload.startswith(ZSTD_MAGIC):
        raise StepError(f"{step.what}: the kernel {release} is not compressed with zstd")
    packed = tree / f"{KERNEL}.zst"
    packed.write_bytes(payload)
    step.run("zstd", "--decompress", "--rm", packed)
