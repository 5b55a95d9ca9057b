# SPDX-License-Identifier: BSD-3-Clause
"""What `doctor` says of a host's modules, memory, QEMU, and the folder for sockets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_host import (
    GIB,
    KERNEL,
    LIMITS,
    MODULES,
    NIC,
    NOBODY,
    Change,
    FakeHost,
    each,
    found,
    has,
    lacks,
    nothing,
    says,
)
from vfio_user_bridge.doctor.memory import size

UNLOADED = lacks("sys/module/vfio_pci")
UNLISTED = has(f"{MODULES}/modules.dep")
NODE = "dev/vfio/vfio"


@pytest.fixture
def fake(public_folder: Path) -> FakeHost:
    return FakeHost(public_folder)


def asked(gib: float) -> Change:
    return lambda fake: fake.asked(memory=int(gib * GIB))


def limit(count: int) -> Change:
    return has("proc/self/limits", LIMITS.format(count))


def capable(bits: int) -> Change:
    return has("proc/self/status", f"CapEff:\t{bits:016x}\n")


def pool(page: int, pages: int, free: int) -> Change:
    return lambda fake: fake.pool(page, pages, free)


def qemu(version: str, *, name: str = "qemu-system-x86_64") -> Change:
    return lambda fake: fake.qemu(name, version, "vfio-pci")


@pytest.mark.parametrize(
    ("check", "change", "level", "seen", "mend"),
    [
        ("modules", nothing, "ok", "vfio-pci is in the kernel", ""),
        ("modules", UNLOADED, "warning", "vfio-pci isn't loaded yet", "modprobe vfio-pci"),
        ("modules", each(UNLOADED, UNLISTED), "problem", f"{KERNEL}, has no", "CONFIG_VFIO_PCI"),
        ("modules", each(UNLOADED, lacks("lib")), "problem", f"no /{MODULES}", "on the host"),
        ("dev-vfio", nothing, "ok", f"may open /{NODE}", ""),
        ("dev-vfio", lacks(NODE), "problem", f"there is no /{NODE}", "let udev make it"),
        (
            "dev-vfio",
            lambda fake: fake.path(NODE).chmod(0),
            *("problem", f"may not open /{NODE}", f"chmod 0666 /{NODE}"),
        ),
        (
            "dev-vfio",
            each(lacks(NODE), lambda fake: fake.path(NODE).mkdir()),
            *("problem", "can't be opened: Is a directory", "DeviceAllow="),
        ),
        ("locked-memory", nothing, "ok", "may lock any memory", ""),
        ("locked-memory", limit(8 << 20), "warning", "8 MiB, and a guest of 4 GiB", "LimitMEMLOCK"),
        ("locked-memory", each(limit(8 << 20), asked(2)), "problem", "of 2 GiB", "prlimit --pid"),
        ("locked-memory", limit(4 << 30), "ok", "may lock 4 GiB", ""),
        ("locked-memory", each(limit(4 << 30), asked(4)), "ok", "may lock 4 GiB", ""),
        ("locked-memory", each(limit(4 << 30), asked(4.5)), "problem", "of 4.5 GiB", "limits.conf"),
        ("locked-memory", each(limit(0), capable(1 << 14), asked(2)), "ok", "CAP_IPC_LOCK", ""),
        ("locked-memory", each(limit(0), capable(1 << 13)), "warning", "lock 0 bytes", "prlimit"),
        # root of a user namespace
        (
            "locked-memory",
            each(limit(0), capable(1 << 14), has("proc/self/uid_map", "0 100000 65536\n")),
            *("warning", "lock 0 bytes", "prlimit"),
        ),
        ("locked-memory", lacks("proc/self/status"), "warning", "can't be seen", "mount /proc"),
        ("memory", nothing, "ok", "8 GiB available of 16 GiB", ""),
        ("memory", asked(8), "ok", "8 GiB available of 16 GiB", ""),
        ("memory", asked(9), "warning", "all 9 GiB of the guest are pinned", "end what takes"),
        ("memory", asked(17), "problem", "all 17 GiB of the guest", "a smaller guest"),
        ("memory", each(asked(9), pool(1 << 20, 9, 9)), "ok", "8 GiB available", ""),
        ("memory", has("proc/meminfo"), "warning", "/proc/meminfo has no MemTotal", ""),
        ("hugepages", nothing, "ok", "no hugepages", ""),
        ("hugepages", each(asked(4), pool(2048, 0, 0)), "ok", "shared memory: never", ""),
        ("hugepages", pool(2048, 512, 256), "ok", "512 hugepages of 2 MiB, 512 MiB free", ""),
        ("hugepages", each(asked(0.5), pool(2048, 512, 256)), "ok", "512 MiB free", ""),
        # 256 are taken, and 1 GiB takes 512
        (
            "hugepages",
            each(asked(1), pool(2048, 512, 256)),
            *("warning", "doesn't fit", "echo 768 >/sys/kernel/mm/hugepages/hugepages-2048kB/nr_"),
        ),
        ("hugepages", each(asked(1), pool(1 << 20, 1, 1), pool(2048, 9, 9)), "ok", "18 MiB", ""),
        ("qemu", nothing, "ok", "qemu-system-x86_64 (version 10.1.2) has vfio-user-pci", ""),
        ("qemu", lacks("bin"), "warning", "there is no QEMU on PATH", "trixie-backports"),
        ("qemu", qemu("10.0.8"), "problem", "too old for it", "install QEMU 10.1"),
        ("qemu", qemu("11.1.3"), "problem", "is built without it", "install QEMU 10.1"),
        ("qemu", qemu(""), "problem", "of unknown version", "install QEMU 10.1"),
        ("qemu", has("bin/qemu-system-x86_64"), "problem", "of unknown", "install QEMU 10.1"),
        ("qemu", qemu("9.2.0", name="qemu-system-aarch64"), "warning", "aarch64", "install QEMU"),
    ],
)  # fmt: skip
def test_check(
    fake: FakeHost, check: str, change: Change, level: str, seen: str, mend: str
) -> None:
    findings = found(fake, check, change)
    assert says(findings, level, seen, mend), findings


def test_a_module_that_is_not_loaded_has_no_node_to_open(fake: FakeHost) -> None:
    """Opening it would load the module (MODULE_ALIAS("devname:vfio/vfio"))."""
    assert not found(fake, "dev-vfio", lacks("sys/class/misc/vfio"))


@pytest.mark.parametrize(("release", "there"), [("13.1\n", True), ("12.11\n", False)])
def test_backports_are_debian_13s(fake: FakeHost, release: str, there: bool) -> None:
    fake.write("etc/debian_version", release)
    fake.qemu("qemu-system-x86_64", "10.0.8", "vfio-pci")
    assert bool(fake.findings("qemu")[0].command) == there


def test_red_hats_qemu_is_on_no_path(fake: FakeHost) -> None:
    fake.remove("bin")
    fake.qemu("../usr/libexec/qemu-kvm")
    assert says(fake.findings("qemu"), "ok", "/usr/libexec/qemu-kvm (version", "")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1 << 10, "1 KiB"), (3 << 29, "1.5 GiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


# ---- The folder for sockets -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "level", "seen", "command"),
    [
        (0o700, "ok", "can make sockets in", ""),
        (0o1777, "ok", "can make sockets in", ""),
        (0o777, "problem", "everybody may write", "chmod go-w"),
        (0o770, "warning", "a group may write", "chmod g-w"),
        (0o500, "problem", "may not make sockets", "chown"),
        (None, "problem", "No such file", "install --directory"),
    ],
)
def test_socket_folder(
    fake: FakeHost, mode: int | None, level: str, seen: str, command: str
) -> None:
    folder = fake.path("it's here")
    if mode is not None:
        folder.mkdir()
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, -1)
        folder.chmod(mode)
    fake.asked(socket_dir=folder)
    (finding,) = findings = found(fake, "socket-dir", nothing)
    assert says(findings, level, seen, command), findings
    if command and mode != 0o500:  # that folder has its owner, who may not write to it
        subprocess.run(["sh", "-c", finding.command], check=True)
        assert says(found(fake, "socket-dir", nothing), "ok", "can make sockets in", "")


def test_socket_folder_that_is_none(fake: FakeHost) -> None:
    fake.asked(socket_dir=fake.path("proc/cmdline"))
    assert says(fake.findings("socket-dir"), "problem", "is no folder", "choose another")


@pytest.mark.parametrize(("more", "level"), [(0, "ok"), (1, "problem")])
def test_socket_folder_with_a_long_name(fake: FakeHost, more: int, level: str) -> None:
    """Where `serve` can bind a socket, and where the name is a byte too long for it."""
    folder = fake.path("x" * (107 - len(f"{fake.host.root}//{NIC}.sock") + more))
    folder.mkdir()
    fake.asked(socket_dir=folder)
    (finding,) = fake.findings("socket-dir")
    assert finding.level == level
    serve = (sys.executable, "-m", "vfio_user_bridge", "serve", "model:edu", "--socket-path")
    with subprocess.Popen((*serve, f"{folder}/{NIC}.sock"), stdout=-1, stderr=-1) as server:
        assert server.stdout
        assert bool(server.stdout.readline()) == (level == "ok")
        server.terminate()
