# SPDX-License-Identifier: BSD-3-Clause
"""What the service manager hears: in order, when it is news, and as often as it wants a sign."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfio_user_bridge import notify
from vfio_user_bridge.notify import Manager

from .full_mailbox import fill
from .running_server import server


class Ear:
    """The manager's end."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(20)
        self.socket.bind(address)

    def hear(self) -> list[str]:
        """The next message, by lines."""
        return self.socket.recv(4096).decode().split("\n")

    def silent(self) -> bool:
        self.socket.setblocking(False)
        try:
            return not self.socket.recv(4096)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(20)


@pytest.fixture(params=["file", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """As NOTIFY_SOCKET has it."""
    return str(tmp_path / "notify") if request.param == "file" else f"@{tmp_path}"


@pytest.fixture
def ear(address: str) -> Iterator[Ear]:
    ear = Ear(address.replace("@", "\0"))
    yield ear
    ear.socket.close()


def test_only_news_is_told(ear: Ear, address: str) -> None:
    environment = {"NOTIFY_SOCKET": address, "HOME": "/"}
    manager = Manager(environment)
    assert environment == {"HOME": "/"}
    manager.ready()
    manager.report("edu: no client")
    manager.report("edu: no client")
    manager.report("edu: pid 1")
    manager.stopping()
    heard = [ear.hear() for _ in range(4)]
    assert heard == [["READY=1"], ["STATUS=edu: no client"], ["STATUS=edu: pid 1"], ["STOPPING=1"]]
    assert ear.silent()
    assert manager.patience is None


def test_signs_of_life_come_twice_a_period(ear: Ear, address: str) -> None:
    period = {"WATCHDOG_USEC": "400000", "WATCHDOG_PID": str(os.getpid())}
    manager = Manager({"NOTIFY_SOCKET": address, **period})
    assert manager.patience == 0
    manager.report("")
    assert ear.hear() == ["WATCHDOG=1"]
    assert manager.patience is not None
    assert 0 < manager.patience <= 0.2
    manager.report("news")
    assert ear.hear() == ["STATUS=news"]
    time.sleep(manager.patience)
    manager.report("more")
    assert ear.hear() == ["STATUS=more", "WATCHDOG=1"]


@pytest.mark.parametrize(
    "period",
    [
        {},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
    ],
    ids=["none", "no number", "never", "another's"],
)
def test_no_sign_of_life_unless_it_is_wanted(
    ear: Ear, address: str, period: dict[str, str]
) -> None:
    manager = Manager({"NOTIFY_SOCKET": address, **period})
    assert manager.patience is None
    manager.report("")
    assert ear.silent()


def test_without_a_manager_nothing_happens() -> None:
    manager = Manager({})
    manager.ready()
    manager.report("edu: no client")


def test_a_deaf_manager_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manager = Manager({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    manager.ready()
    manager.report("edu: no client")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"can't tell the service manager at {tmp_path}/gone: No such file" in caplog.text


def test_a_manager_that_hears_again_is_told_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a sign of life it would end us."""
    manager = Manager({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1"})
    manager.ready()
    ear = Ear(str(tmp_path / "notify"))
    manager.report("edu: no client")
    assert ear.hear() == ["STATUS=edu: no client", "WATCHDOG=1"]
    ear.socket.close()
    manager.report("edu: no client")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


def test_a_manager_that_is_stopped_is_waited_for_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "_PATIENCE", 0.5)
    ear = Ear(address := str(tmp_path / "notify"))
    manager = Manager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "999999999"})
    fill(address)
    start = time.monotonic()
    for _ in range(100):
        manager.release("file")
        manager.settle()
    assert 0.5 <= time.monotonic() - start < 20
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    manager.report("")
    assert manager.patience is not None
    assert manager.patience < 2, "its sign of life is overdue"
    ear.hear()
    manager.ready()
    while ear.hear() != ["READY=1"]:
        pass
    ear.socket.close()


def test_one_that_does_not_answer_is_waited_for_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "_PATIENCE", 0.5)
    ear = Ear(str(tmp_path / "notify"))
    manager = Manager({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    for _ in range(100):
        manager.settle()
    assert len(caplog.records) == 1
    assert ear.hear() == ["BARRIER=1"]  # and so closes what came with it
    assert ear.silent()
    manager.settle()
    assert ear.hear() == ["BARRIER=1"]
    ear.socket.close()
    manager.settle()


def test_a_server_tells_of_itself(tmp_path: Path) -> None:
    path, ear = tmp_path / "edu.sock", Ear(str(tmp_path / "notify"))
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
    with server(path, "--socket-path", str(path), environment=environment) as edu:
        assert ear.hear() == ["READY=1"]
        assert ear.hear() == ["STATUS=edu: no client", "WATCHDOG=1"]
        assert ear.hear() == ["WATCHDOG=1"]  # though nothing happens
        with edu.client():
            while "WATCHDOG=1" in (told := ear.hear()):
                pass
            assert told == [f"STATUS=edu: pid {os.getpid()}, uid {os.getuid()}"]
        while "WATCHDOG=1" in (told := ear.hear()):
            pass
        assert told == ["STATUS=edu: no client"]
        edu.stop()
    while "WATCHDOG=1" in (told := ear.hear()):
        pass
    assert told == ["STOPPING=1"]
    ear.socket.close()
