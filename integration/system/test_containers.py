# SPDX-License-Identifier: BSD-3-Clause
"""A container with the device, another with the virtual machine: docker/ as its page says."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from integration import guest, page
from integration.containers import FOLDER, IMAGES
from integration.devices import NVME, disk
from integration.guests_kernel import CARRIED
from tests.processes import status
from vfio_user_bridge.kernel import pci

from .waiting import until

ARCHIVES = Path("/results") / FOLDER
COMPOSE_FILE = Path(__file__).parents[2] / "docker/compose.yaml"
BRIDGE, QEMU = "vfio-user_bridge_1", "vfio-user_qemu_1"
USERS = {BRIDGE: 64346, QEMU: 64347}
LIMIT = 128 << 20  # bytes of memory, what docker/kubernetes.yaml gives to the bridge
GUEST_TIMEOUT = 900.0  # seconds, of a machine in a machine on a busy host

# The guest reads what was on the disk, writes something else there and reads that back, past its
# page cache; then it goes on reading.
SIZE = 1 << 18  # bytes
SCRIPT = f"""
digest() {{
    echo 3 >/proc/sys/vm/drop_caches
    echo "$1" $(head -c {SIZE} /dev/nvme0n1 | sha256sum)
}}
until [ -b /dev/nvme0n1 ]; do sleep 0.1; done
digest found
head -c {SIZE} /dev/urandom >/made
echo made $(sha256sum </made)
dd if=/made of=/dev/nvme0n1 bs={SIZE} conv=fsync
digest read
while :; do digest again; done
"""


def podman(*words: str) -> str:
    return subprocess.run(("podman", *words), stdout=subprocess.PIPE, text=True, check=True).stdout


def compose(*words: str) -> None:
    subprocess.run(("podman-compose", *words), check=True)


pytestmark = pytest.mark.usefixtures("images")


@pytest.fixture(scope="module")
def images() -> Iterator[None]:
    names = [image.name for image in IMAGES]
    for name in names:
        podman("load", "--quiet", "--input", str(ARCHIVES / f"{name}.tar"))
    yield
    podman("rmi", *names)


@pytest.fixture(scope="module")
def guest_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guest")
    folder.chmod(0o755)
    shutil.copy(CARRIED, folder / "vmlinuz")
    (folder / "initrd").write_bytes(guest.initramfs(SCRIPT))
    return folder


@pytest.fixture
def environment(guest_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """What compose.yaml asks for; whatever a test has left of the containers goes."""
    variables = {
        "DEVICE": NVME,
        "GROUP": str(pci.find(NVME).iommu_group),
        "GUEST": str(guest_folder),
        "MEMORY": "256M",
        "APPEND": guest.KERNEL_ARGUMENTS,
        "COMPOSE_FILE": str(COMPOSE_FILE),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    yield variables
    compose("down", "--volumes")
    subprocess.run(("vfio-user-bridge", "unbind", NVME), check=True)


class Console:
    """The guest of QEMU's container, started anew, and what it says."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ("podman", "start", "--attach", QEMU), stdout=subprocess.PIPE, text=True
        )
        self._timer = threading.Timer(GUEST_TIMEOUT, self._process.kill)

    def until(self, word: str) -> str:
        """Wait for a line that begins with *word*; gives the rest of it."""
        assert self._process.stdout
        said = []
        for line in self._process.stdout:
            said.append(line)
            if line.startswith(word):
                return line.removeprefix(word).strip()
        pytest.fail(f"no {word!r} in what the guest said: {''.join(said)}; the bridge: {log()}")

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        assert self._process.stdout
        self._process.stdout.close()
        self._process.kill()
        self._process.wait()


def state(container: str, what: str) -> str:
    return podman("inspect", "--format", f"{{{{.State.{what}}}}}", container).strip()


def log() -> str:
    """What the bridge has said."""
    said = subprocess.run(("podman", "logs", BRIDGE), capture_output=True, text=True, check=True)
    return said.stdout + said.stderr


def events() -> list[str]:
    return re.findall("ready on|serving|client gone|stopping: SIGTERM", log())


def started() -> list[str]:
    """The bridges that there were, by their numbers in the container."""
    return re.findall(r"supervise: started pid (\d+)", log())


def main_process(container: str) -> int:
    return int(state(container, "Pid"))


def test_page(environment: dict[str, str]) -> None:
    here = {"0000:01:00.0": NVME, "GROUP=12": f"GROUP={environment['GROUP']}"}
    here |= {"/srv/guest": environment["GUEST"], "MEMORY=2G": "MEMORY=256M"}
    page.run("containers.md", here)


def start_bridge(environment: dict[str, str]) -> None:
    subprocess.run(("vfio-user-bridge", "bind", NVME), check=True)
    os.chown(Path("/dev/vfio", environment["GROUP"]), USERS[BRIDGE], USERS[BRIDGE])
    compose("up", "--no-start")
    podman("start", BRIDGE)
    podman("wait", "--condition=healthy", BRIDGE)


def test_a_killed_bridge_is_started_again(environment: dict[str, str]) -> None:
    start_bridge(environment)
    podman("exec", BRIDGE, "sh", "-c", f"kill -KILL {started()[-1]}")
    until(lambda: len(started()) == 2 and log().count("ready on") == 2, log)
    assert "was killed by SIGKILL; starting it again in 0 s" in log()
    command = ("python3", "-m", "vfio_user_bridge", "status", "--control=/run/bridge/control.sock")
    assert f"pid {started()[-1]}" in podman("exec", BRIDGE, *command)
    podman("stop", BRIDGE)
    assert state(BRIDGE, "ExitCode") == "0"


def test_a_guest_and_the_next_client(environment: dict[str, str]) -> None:
    known = os.urandom(SIZE)
    disk(NVME).write_bytes(known)
    start_bridge(environment)
    with Console() as console:
        assert console.until("found") == f"{hashlib.sha256(known).hexdigest()} -"
        made = console.until("made")
        assert console.until("read") == made

        for container, user in USERS.items():
            process = status(main_process(container))
            assert process["Uid"].split() == [str(user)] * 4
            assert process["CapEff"] == process["CapPrm"] == process["CapBnd"] == "0" * 16
            assert process["NoNewPrivs"] == "1"
        peak = Path("/sys/fs/cgroup", state(BRIDGE, "CgroupPath").strip("/"), "memory.peak")
        assert int(peak.read_text()) < LIMIT  # the guest's RAM counts as QEMU's

        console.until("again")
        podman("kill", QEMU)
    podman("wait", QEMU)

    podman("start", QEMU)
    until(lambda: events().count("serving") >= 2, events)
    # Process 1 of a container is deaf to a signal until it has a handler.
    qemu, bit = main_process(QEMU), 1 << (signal.SIGTERM - 1)
    until(lambda: int(status(qemu)["SigCgt"], 16) & bit != 0, lambda: status(qemu))
    podman("stop", "--time", "120", QEMU)
    assert state(QEMU, "ExitCode") == "0"
    podman("stop", BRIDGE)
    assert state(BRIDGE, "ExitCode") == "0"
    clients = ["serving", "client gone"] * 2
    assert events() == ["ready on", *clients, "stopping: SIGTERM"]
