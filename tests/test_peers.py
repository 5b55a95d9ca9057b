# SPDX-License-Identifier: BSD-3-Clause
"""Who may be a client."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vfio_user_bridge.errors import UsageError
from vfio_user_bridge.peers import Allowed, Peer, allowed, peer

from .running_server import server

GROUP = 4242
#: connects, and says whether anyone is there to answer
CALL = """
import json, socket, struct, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(20)
s.connect(sys.argv[1])
payload = struct.pack("=HH", 0, 1)
try:
    s.sendall(struct.pack("=HHIII", 0, 1, 16 + len(payload), 0, 0) + payload)
    print("served" if s.recv(1) else "refused")
except (BrokenPipeError, ConnectionResetError):
    print("refused")
"""


def test_the_kernel_says_who_it_is() -> None:
    here, there = socket.socketpair()
    with contextlib.closing(here), contextlib.closing(there):
        who = peer(here)
    assert who == Peer(os.getpid(), os.getuid(), frozenset((os.getgid(), *os.getgroups())))


@pytest.mark.parametrize(
    ("ours", "its", "shared"),
    [({0}, {0}, True), ({0}, {1}, False), ({0, 1}, {0}, False), ({0}, None, True)],
)
def test_one_cpu_for_both(
    ours: set[int], its: set[int] | None, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def affinity(pid: int) -> set[int]:
        if pid and its is None:
            raise ProcessLookupError
        return set(its if pid and its else ours)

    monkeypatch.setattr(os, "sched_getaffinity", affinity)
    assert Peer(100, 7, frozenset()).shares_one_cpu() is shared


@pytest.mark.parametrize(
    ("users", "groups", "admitted"),
    [
        ([], [], True),
        ([7], [], True),
        ([8], [], False),
        ([], [1], True),
        ([], [2], True),
        ([], [3], False),
        ([7], [3], True),
        ([8], [2], True),
        ([8], [3], False),
    ],
)
def test_admitted(users: list[int], groups: list[int], admitted: bool) -> None:
    who = Peer(100, 7, frozenset((1, 2)))
    assert Allowed(frozenset(users), frozenset(groups)).admits(who) is admitted


def test_root_is_not_let_in_for_being_root() -> None:
    assert not allowed(["7"], []).admits(Peer(1, 0, frozenset((0,))))


def test_names_and_numbers() -> None:
    assert allowed(["root", "7"], ["root"]) == Allowed(frozenset((0, 7)), frozenset((0,)))


@pytest.mark.parametrize("name", ["no such", "", "-1"])
def test_names_that_nobody_has(name: str) -> None:
    with pytest.raises(UsageError, match=f"^--allow-uid: there is no '{name}'"):
        allowed([name], [])
    with pytest.raises(UsageError, match=f"^--allow-gid: there is no '{name}'"):
        allowed([], [name])


def call(path: Path, *groups: int) -> str:
    command = (sys.executable, "-c", CALL, str(path))
    extra = groups or None
    return subprocess.run(
        command, capture_output=True, text=True, check=True, extra_groups=extra
    ).stdout.strip()


def test_only_a_user_who_is_named_is_served(tmp_path: Path) -> None:
    path = tmp_path / "edu.sock"
    with server(path, "--socket-path", str(path), "--allow-uid", str(os.getuid())) as edu:
        assert call(path) == "served"
        edu.stop()
    with server(path, "--socket-path", str(path), "--allow-uid", str(os.getuid() + 1)) as edu:
        assert call(path) == "refused"
        assert f"uid {os.getuid()}: neither its user nor a group of it is allowed" in edu.log()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a process more groups")
def test_a_supplementary_group_is_one(tmp_path: Path) -> None:
    path = tmp_path / "edu.sock"
    with server(path, "--socket-path", str(path), "--allow-gid", str(GROUP)):
        assert call(path) == "refused"
        assert call(path, GROUP) == "served"
