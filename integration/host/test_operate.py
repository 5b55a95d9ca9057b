# SPDX-License-Identifier: BSD-3-Clause
"""docs/users/operate.md does what it shows, with a real QEMU, whose guest is idle."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest

from integration import page, qemu


def test_operate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    here = {
        "/run/": f"{tmp_path}/",
        "qemu-system-x86_64 -accel kvm disk.qcow2": f"{shlex.join(qemu.find())} -accel qtest",
        "4G": "256M",
    }
    try:
        page.run("operate.md", here)
    finally:
        for file in ("vm.pid", "vm2.pid"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int((tmp_path / file).read_text()), signal.SIGKILL)
