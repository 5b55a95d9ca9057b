# SPDX-License-Identifier: BSD-3-Clause
"""docs/users/trace.md does what it shows, with a real QEMU and a Linux guest in it."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from integration import guest, page, qemu, tree

PAGE = "trace.md"
PROMPT = "guest# "


def test_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    root = tree.path()
    typed = re.findall(rf"^{PROMPT}(.*)$", page.read(PAGE, {}), re.MULTILINE)
    script = "".join(f"echo {shlex.quote(PROMPT + line)}\n{line}\n" for line in typed)
    script = f"poweroff() {{ busybox poweroff -f; }}\necho\n{script}"
    initramfs = tmp_path / "initramfs"
    initramfs.write_bytes(guest.initramfs(script, tree=root))
    boot = [*qemu.find(), *guest.boot_arguments(root / tree.KERNEL, initramfs), "-serial", "stdio"]
    here = {
        "/run/": f"{tmp_path}/",
        "qemu-system-x86_64 -accel kvm -nographic disk.qcow2": shlex.join(boot),
        "4G": "256M",
    }
    page.run(PAGE, here)
