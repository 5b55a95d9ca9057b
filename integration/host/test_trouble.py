# SPDX-License-Identifier: BSD-3-Clause
"""QEMU says what docs/users/trouble.md has it say where something is wrong with its bridge."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration import page, qemu
from tests.running_server import RunningServer, server
from vfio_user_bridge.qemu import device

PATIENCE = 30.0
#: milliseconds: how long QEMU waits for a bridge that has stopped
SOON = 300


@pytest.fixture
def edu(tmp_path: Path) -> Iterator[RunningServer]:
    path = tmp_path / "edu.sock"
    with server(path, "--socket-path", str(path)) as running:
        yield running


@contextmanager
def vm(properties: Mapping[str, object], *prefix: str) -> Iterator[subprocess.Popen[str]]:
    """QEMU with one device, and no guest."""
    command = [*prefix, *qemu.find(), "-accel", "qtest", "-display", "none", "-nodefaults"]
    command += ["-device", json.dumps(properties), "-qmp", "stdio"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def end(properties: Mapping[str, object], *prefix: str) -> str:
    """What a QEMU says that can't start."""
    with vm(properties, *prefix) as process:
        said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 1
    return said


def absent(edu: RunningServer) -> str:
    return end(device(edu.path.with_name("other.sock")))


def killed(edu: RunningServer) -> str:
    edu.process.kill()
    edu.process.wait()
    return end(device(edu.path))


def forbidden(edu: RunningServer) -> str:
    edu.path.chmod(0)
    # Root may open what it likes, unless it lacks that capability.
    without = ("setpriv", "--bounding-set=-dac_override") if os.geteuid() == 0 else ()
    return end(device(edu.path), *without)


def taken(edu: RunningServer) -> str:
    with edu.client():
        return end(device(edu.path))


def stopped(edu: RunningServer) -> str:
    edu.process.send_signal(signal.SIGSTOP)
    return end({**device(edu.path), "x-msg-timeout": SOON})


def ended(edu: RunningServer) -> str:
    with vm(device(edu.path)) as process:
        # It answers once its devices are set up; before, it would say what it was at.
        assert process.stdin
        assert process.stdout
        process.stdin.write('{"execute": "qmp_capabilities"}\n')
        process.stdin.flush()
        assert any("return" in line for line in process.stdout)
        assert "serving" in edu.log()
        edu.stop()
        assert process.stderr
        assert select.select([process.stderr], [], [], PATIENCE)[0]
        return process.stderr.readline()


def old(_edu: RunningServer) -> str:
    """No QEMU that old is here; this one doesn't know another name."""
    return end({"driver": "vfio-user-pcx"}).replace("pcx", "pci")


def plain(edu: RunningServer) -> str:
    return end({"driver": "vfio-user-pci", "socket": str(edu.path)})


CASES = [
    (absent, "Failed to connect to 'PATH': No such file or directory"),
    (killed, "Failed to connect to 'PATH': Connection refused"),
    (forbidden, "Failed to connect to 'PATH': Permission denied"),
    (taken, "Unable to write to socket: Broken pipe"),
    (ended, "failed to read header: EOF"),
    (stopped, "timed out waiting for reply: Connection timed out"),
    (old, "'vfio-user-pci' is not a valid device model name"),
    (plain, "Invalid parameter type for 'socket', expected: object"),
]


@pytest.mark.parametrize(("do", "message"), CASES, ids=[do.__name__ for do, _ in CASES])
def test_what_qemu_says(
    edu: RunningServer, do: Callable[[RunningServer], str], message: str
) -> None:
    assert re.search(re.escape(message).replace("PATH", "/.*"), do(edu))


def test_the_page_has_these() -> None:
    section = page.read("trouble.md", {}, "What QEMU says")
    assert re.findall(r"^\| `(.*?)` \|", section, re.MULTILINE) == [message for _, message in CASES]
