# SPDX-License-Identifier: BSD-3-Clause
"""When a bus may be reset, with the kernel's side played by a list."""

from __future__ import annotations

import errno
from dataclasses import dataclass

import pytest

from vfio_user_bridge.hotreset import HotReset
from vfio_user_bridge.kernel import vfio

DEVICE = 99
FIRST, SECOND, THIRD = "0000:05:00.0", "0000:05:00.1", "0000:05:00.2"


@dataclass
class Group:
    group: int


@dataclass
class Function:
    rests: bool

    def at_rest(self) -> bool:
        return self.rests


@pytest.fixture
def resets(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The groups of every reset that the kernel was asked for."""
    asked: list[list[int]] = []
    monkeypatch.setattr(vfio, "hot_reset_info", lambda _: [(7, FIRST), (7, SECOND), (8, THIRD)])
    monkeypatch.setattr(vfio, "hot_reset", lambda _, groups: asked.append(list(groups)))
    return asked


def test_all_at_rest(resets: list[list[int]]) -> None:
    hot_reset = HotReset({7: Group(30), 8: Group(31)})
    # The third isn't served, and as its group is ours nobody else has it.
    hot_reset.functions = {FIRST: Function(rests=False), SECOND: Function(rests=True)}
    assert hot_reset.possible(DEVICE)
    hot_reset.perform(FIRST, DEVICE)
    assert resets == [[30, 31]]


def test_another_at_work(resets: list[list[int]]) -> None:
    hot_reset = HotReset({7: Group(30), 8: Group(31)})
    hot_reset.functions = {FIRST: Function(rests=True), SECOND: Function(rests=False)}
    with pytest.raises(OSError, match=f"{SECOND} .*at work") as refused:
        hot_reset.perform(FIRST, DEVICE)
    assert refused.value.errno == errno.EBUSY
    assert resets == []


def test_a_group_that_is_not_ours(resets: list[list[int]]) -> None:
    hot_reset = HotReset({7: Group(30)})
    assert not hot_reset.possible(DEVICE)
    with pytest.raises(OSError, match=f"{THIRD} .*isn't ours") as refused:
        hot_reset.perform(FIRST, DEVICE)
    assert refused.value.errno == errno.EPERM
    assert resets == []


def test_no_such_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: int) -> list[tuple[int, str]]:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(vfio, "hot_reset_info", none)
    hot_reset = HotReset({})
    assert not hot_reset.possible(DEVICE)
    with pytest.raises(OSError, match="No such device"):
        hot_reset.perform(FIRST, DEVICE)
