# SPDX-License-Identifier: BSD-3-Clause
"""A container with the device, another with the virtual machine: docker/ as its page says."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration import guest, page
from integration.containers import FOLDER, IMAGES
from integration.devices import NVME
from vfio_user_bridge.kernel import pci

ARCHIVES = Path("/results") / FOLDER
COMPOSE_FILE = Path(__file__).parents[2] / "docker/compose.yaml"

# The guest reads what was on the disk, writes something else there and reads that back, past its
# page cache; then it goes on reading.
SIZE = 4 << 20
SCRIPT = f"""
digest() {{
    echo 3 >/proc/sys/vm/drop_caches
    echo "$1" $(head -c {SIZE} /dev/nvme0n1 | sha256sum)
}}
until [ -b /dev/nvme0n1 ]; do sleep 0.1; done
digest found
head -c {SIZE} /dev/urandom >/made
echo made $(sha256sum </made)
dd if=/made of=/dev/nvme0n1 bs=256k conv=fsync
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
    shutil.copy(guest.ROOT / guest.KERNEL, folder / "vmlinuz")
    (folder / "initrd").write_bytes(guest.initramfs(SCRIPT, ["nvme"]))
    return folder


@pytest.fixture
def environment(guest_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """What compose.yaml asks for; whatever a test has left of the containers goes."""
    variables = {
        "DEVICE": NVME,
        "GROUP": str(pci.find(NVME).iommu_group),
        "GUEST": str(guest_folder),
        "MEMORY": "512M",
        "APPEND": guest.KERNEL_ARGUMENTS,
        "COMPOSE_FILE": str(COMPOSE_FILE),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    yield variables
    compose("down", "--volumes")
    subprocess.run(("vfio-user-bridge", "unbind", NVME), check=True)


def test_page(environment: dict[str, str]) -> None:
    here = {"0000:01:00.0": NVME, "GROUP=12": f"GROUP={environment['GROUP']}"}
    here |= {"/srv/guest": environment["GUEST"], "MEMORY=2G": "MEMORY=512M"}
    page.run("containers.md", here)
