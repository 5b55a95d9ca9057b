# SPDX-License-Identifier: BSD-3-Clause
"""IOMMU groups that are passed as descriptors: which group each is, and what is none.

/dev/null and /dev/zero stand for nodes in /dev/vfio: what they are is for sysfs to say.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.kernel.groupfd import by_group, group_of

NULL, ZERO = "1:3", "1:5"  # Documentation/admin-guide/devices.txt


class Nodes:
    """A sysfs, and descriptors."""

    def __init__(self, sysfs: Path, stack: ExitStack) -> None:
        self.sysfs = sysfs
        self._stack = stack
        (sysfs / "dev/char").mkdir(parents=True)

    def device(self, number: str, name: str, subsystem: str) -> None:
        path = self.sysfs / "devices/virtual" / subsystem / name
        path.mkdir(parents=True)
        (self.sysfs / "class" / subsystem).mkdir(parents=True, exist_ok=True)
        (path / "subsystem").symlink_to(f"../../../../class/{subsystem}")
        (self.sysfs / "dev/char" / number).symlink_to(f"../../devices/virtual/{subsystem}/{name}")

    def open(self, path: str) -> int:
        fd = os.open(path, os.O_RDWR)
        self._stack.callback(os.close, fd)
        return fd


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with ExitStack() as stack:
        yield Nodes(tmp_path, stack)


def test_which_group_each_is(nodes: Nodes) -> None:
    nodes.device(NULL, "12", "vfio")
    nodes.device(ZERO, "7", "vfio")
    null, zero = nodes.open("/dev/null"), nodes.open("/dev/zero")
    os.set_inheritable(null, True)
    assert by_group([null, zero], nodes.sysfs) == {12: null, 7: zero}
    assert not os.get_inheritable(null)


def test_a_group_comes_once(nodes: Nodes) -> None:
    nodes.device(NULL, "12", "vfio")
    first, second = nodes.open("/dev/null"), nodes.open("/dev/null")
    says = f"file descriptors {first} and {second} are both IOMMU group 12: pass each group once"
    with pytest.raises(BridgeError, match=says):
        by_group([first, second], nodes.sysfs)


@pytest.mark.parametrize(
    ("name", "subsystem"),
    [("vfio", "misc"), ("noiommu-12", "vfio"), ("vfio0", "vfio-dev"), ("12", "tty")],
    ids=["container", "no IOMMU", "device", "another number"],
)
def test_other_nodes_are_none(nodes: Nodes, name: str, subsystem: str) -> None:
    nodes.device(NULL, name, subsystem)
    with pytest.raises(BridgeError, match="is no IOMMU group: pass an open /dev/vfio/GROUP"):
        group_of(nodes.open("/dev/null"), nodes.sysfs)


def test_what_is_no_node_is_none(nodes: Nodes, tmp_path: Path) -> None:
    nodes.device(NULL, "12", "vfio")
    for fd in (nodes.open("/dev/zero"), os.open(tmp_path, os.O_RDONLY)):
        with pytest.raises(BridgeError, match=f"file descriptor {fd} is no IOMMU group"):
            group_of(fd, nodes.sysfs)
    os.close(fd)


@pytest.mark.parametrize("fd", [-1, 1 << 20, 1 << 40])
def test_what_is_not_open_is_none(nodes: Nodes, fd: int) -> None:
    with pytest.raises(BridgeError, match=f"file descriptor {fd} is not open"):
        group_of(fd, nodes.sysfs)
