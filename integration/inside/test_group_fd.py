# SPDX-License-Identifier: BSD-3-Clause
"""IOMMU groups that someone else opened: the bridge needs no right on their nodes."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration import devices
from vfio_user_bridge.device import PciRegion
from vfio_user_bridge.kernel import pci

from . import edu
from .bridge import COMMAND, CONFIG, Bridge, bind, command
from .test_dma import IOVA, PAGE, TEXT, memory

EDU_ID = 0x11E81234
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
DEVICE = devices.EDU_ALONE


def node(bdf: str) -> Path:
    return Path("/dev/vfio", str(pci.find(bdf).iommu_group))


@pytest.fixture
def group() -> Iterator[int]:
    """The open group of DEVICE."""
    bind(DEVICE)
    fd = os.open(node(DEVICE), os.O_RDWR)
    yield fd
    os.close(fd)
    assert command("unbind", DEVICE).returncode == 0  # nobody has kept it


def served(group: int) -> Bridge:
    """A bridge of DEVICE by a user who may not open its group."""
    options = ("--group-fd", str(group))
    return Bridge(DEVICE, options=options, prefix=NOBODY, pass_fds=[group])


def refusal(device: str, fd: int) -> str:
    """The one line of a bridge that doesn't start with the group *fd*."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        serve = ("serve", device, "--socket-dir", folder, "--group-fd", str(fd))
        done = subprocess.run(
            (*NOBODY, *COMMAND, *serve), capture_output=True, text=True, pass_fds=[fd], check=False
        )
        assert not list(Path(folder).iterdir())
    assert done.returncode in (1, 2)
    (line,) = done.stderr.splitlines()
    return line


def test_it_serves_without_a_right_on_the_node(group: int) -> None:
    assert node(DEVICE).stat().st_mode & 0o077 == 0
    with served(group) as serving, serving.client(DEVICE) as device, memory(2 * PAGE) as fd:
        assert device.read(CONFIG, 0, 4) == EDU_ID
        device.enable()
        os.pwrite(fd, TEXT, 0)
        device.dma_map(fd, IOVA, 2 * PAGE)
        edu.copy(device, IOVA, IOVA + PAGE, len(TEXT))
        assert os.pread(fd, len(TEXT), PAGE) == TEXT


def test_a_group_that_outlived_its_bridge_is_taken_over(group: int) -> None:
    with memory(2 * PAGE) as fd:
        with served(group) as first:
            device = first.client(DEVICE)
            device.dma_map(fd, IOVA, PAGE)
            mapped = device.map(PciRegion.BAR0)
            first.process.kill()
            first.process.wait()
        # Until the client lets go of the device, the group has a user.
        assert "is in use by another process" in refusal(DEVICE, group)
        mapped.close()
        device.__exit__(None, None, None)
        with served(group) as second, second.client(DEVICE) as device:
            device.enable()
            device.dma_map(fd, IOVA, 2 * PAGE)  # the first one's map is gone
            os.pwrite(fd, TEXT, 0)
            edu.copy(device, IOVA, IOVA + PAGE, len(TEXT))
            assert os.pread(fd, len(TEXT), PAGE) == TEXT


def test_a_group_of_none_of_the_devices_is_refused(group: int) -> None:
    assert refusal("model:edu", group) == (
        f"vfio-user-bridge: file descriptor {group} is IOMMU group {node(DEVICE).name},"
        " and none of the devices is in it"
    )


def test_the_container_is_no_group() -> None:
    fd = os.open("/dev/vfio/vfio", os.O_RDWR)
    says = f"file descriptor {fd} is no IOMMU group: pass an open /dev/vfio/GROUP"
    assert refusal("model:edu", fd) == f"vfio-user-bridge: {says}"
    os.close(fd)
