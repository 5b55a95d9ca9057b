# SPDX-License-Identifier: BSD-3-Clause
"""Whether there is a QEMU that can connect."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator

from .findings import Finding, ok, problem, warning
from .host import Host

#: with PCI, in which the device is built
ARCHITECTURES = ("x86_64", "aarch64", "riscv64", "loongarch64", "ppc64", "s390x")
#: where Red Hat's has its own, which is on no PATH
LIBEXEC = "/usr/libexec"
DEVICE = "vfio-user-pci"
SINCE = (10, 1)

_ADVICE = "install QEMU 10.1 or later; on Debian 13 from its backports"
#: on Debian 13
_INSTALL = "apt install -t trixie-backports qemu-system-x86"
_PATIENCE = 20.0  # seconds


def client(host: Host) -> Iterator[Finding]:
    """Each QEMU on PATH knows the device; it is enough if one does."""
    install = _INSTALL if host.text("etc/debian_version").startswith("13") else ""
    search = f"{host.path}:{host.root / LIBEXEC[1:]}"
    names = [*(f"qemu-system-{architecture}" for architecture in ARCHITECTURES), "qemu-kvm"]
    programs = [path for name in names if (path := shutil.which(name, path=search))]
    if not programs:
        yield warning("there is no QEMU on PATH; one in a container isn't seen", _ADVICE, install)
        return
    lacking = {}
    for program in programs:
        version, known = _ask(program, "--version"), f'"{DEVICE}"' in _ask(program, "-device")
        found = re.search(r"version (\d+)\.(\d+)[.\d]*", version)
        shown = f"{program} ({found[0] if found else 'of unknown version'})"
        if known:
            yield ok(f"{shown} has {DEVICE}")
        else:
            old = found is None or (int(found[1]), int(found[2])) < SINCE
            lacking[shown] = "is too old for it" if old else "is built without it"
    level = problem if len(lacking) == len(programs) else warning
    for shown, why in lacking.items():
        yield level(f"{shown} has no {DEVICE}: it {why}", _ADVICE, install)


def _ask(program: str, option: str) -> str:
    """What it prints; nothing if it can't be run."""
    command = [program, option] if option == "--version" else [program, option, "help"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
