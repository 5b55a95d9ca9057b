# SPDX-License-Identifier: BSD-3-Clause
"""What systemd passes at start: for whom it is, and what each descriptor is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from vfio_user_bridge.activation import Passed, passed
from vfio_user_bridge.errors import BridgeError

from .running_server import PATIENCE, SERVE, server

# What systemd does between fork and exec: descriptors at 3, 4 ..., and for whom they are.
ACTIVATION = """
import fcntl, os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[1].split(",")]
for number, fd in enumerate(high):
    os.dup2(fd, 3 + number)
os.closerange(3 + len(high), 200)
os.execv(sys.argv[2], sys.argv[2:])
"""
PASSED = """
import os
from vfio_user_bridge.activation import passed
print(passed(), [name for name in os.environ if name.startswith("LISTEN_")], passed())
"""


def activation(*fds: int) -> list[str]:
    """What runs the command behind it with *fds*, as systemd does."""
    return [sys.executable, "-c", ACTIVATION, ",".join(map(str, fds))]


def run(command: Sequence[str], count: str, *fds: int) -> subprocess.CompletedProcess[str]:
    """Run *command* with *fds*, LISTEN_FDS saying *count*."""
    return subprocess.run(
        [*activation(*fds), *command],
        env={"LISTEN_FDS": count, "LISTEN_FDNAMES": "a:b:c"},
        pass_fds=fds,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(tmp_path / "a.sock"))
        sock.listen()
        yield sock


def test_sockets_and_files_are_told_apart(listening: socket.socket) -> None:
    with Path("/dev/null").open() as null:
        fds = (null.fileno(), listening.fileno(), null.fileno())
        done = run([sys.executable, "-c", PASSED], "3", *fds)
    assert done.stdout == f"{Passed((4,), (3, 5))} [] {Passed()}\n"


@pytest.mark.parametrize("pid", [None, "", "1"])
def test_what_is_for_another_process_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, pid: str | None
) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.delenv("LISTEN_PID", raising=False)
    if pid is not None:
        monkeypatch.setenv("LISTEN_PID", pid)
    assert passed() == Passed()


@pytest.mark.parametrize("count", ["", "two", "-1", "²"])
def test_a_count_that_is_no_number(monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    monkeypatch.setenv("LISTEN_FDS", count)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    with pytest.raises(BridgeError, match=f"^LISTEN_FDS={count} is no number"):
        passed()


@pytest.mark.parametrize(
    ("count", "says"),
    [
        ("99", "LISTEN_FDS promises file descriptor 5, which isn't open: pass it, or unset that"),
        ("2", "file descriptor 4 is no IOMMU group: pass an open /dev/vfio/GROUP"),
    ],
)
def test_what_can_not_be_is_refused_in_one_line(
    listening: socket.socket, count: str, says: str
) -> None:
    with Path("/dev/null").open() as null:
        done = run(SERVE, count, listening.fileno(), null.fileno())
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"vfio-user-bridge: {says}\n"


@pytest.mark.parametrize("name", ["edu", "unknown", ""])
def test_its_socket_is_served(listening: socket.socket, tmp_path: Path, name: str) -> None:
    fd, path = listening.fileno(), tmp_path / "a.sock"
    environment = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": name}
    command = [*activation(fd), *SERVE]
    with server(path, command=command, pass_fds=[fd], environment=environment) as edu:
        assert edu.ready_line == f"edu ready on {path}\n"
        with edu.client():
            pass
        edu.stop()
    assert path.is_socket()


@pytest.mark.parametrize(("names", "status"), [("a:kept-journal-edu", 1), ("unkept-journal", 2)])
def test_where_something_is_kept_wrong_usage_is_not_final(names: str, status: int) -> None:
    done = subprocess.run(
        [*SERVE, "--nonsense"],
        env=os.environ | {"LISTEN_FDNAMES": names},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr.count("\n")) == (status, 1)
