# SPDX-License-Identifier: BSD-3-Clause
"""A bridge of one version takes over from another, or doesn't; the guest is kept, or told.

A version is a copy of the package, with what is to be another in it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vfio_user_bridge.management.control import ask

from . import client as c
from .running_server import PATIENCE, RunningServer, server
from .wire import region, u32

PACKAGE = Path(__file__).parents[1] / "vfio_user_bridge"
PROGRAM = [sys.executable, "-m", "vfio_user_bridge"]
LIVENESS = region(4, 0, 4)  # edu's register: it reads as the inverse of what was written


class Version:
    """A copy of the package in *folder*."""

    def __init__(self, folder: Path) -> None:
        self._package = folder / PACKAGE.name
        shutil.copytree(PACKAGE, self._package, ignore=shutil.ignore_patterns("__pycache__"))
        # Without PYTHONSAFEPATH the package in the working directory comes first.
        self.environment = {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}

    def change(self, file: str, old: str, new: str) -> None:
        path = self._package / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        # What was compiled is told from what wasn't by the second, and the size.
        shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)

    def remove(self) -> None:
        shutil.rmtree(self._package)

    def upgrade(self, control: Path) -> str:
        """:raise CalledProcessError: it doesn't take over"""
        done = subprocess.run(
            [*PROGRAM, "upgrade", "--control", str(control)],
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        done.check_returncode()
        return done.stdout


@pytest.fixture
def old(tmp_path: Path) -> Version:
    return Version(tmp_path / "old")


@pytest.fixture
def new(tmp_path: Path) -> Version:
    return Version(tmp_path / "new")


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "control"


@contextlib.contextmanager
def running(version: Version, control: Path, *command: str) -> Iterator[RunningServer]:
    path = control.with_name("edu.sock")
    options = ("--socket-path", str(path), "--control", str(control))
    serve = [*PROGRAM, *command, "serve", "model:edu"]
    with server(path, *options, command=serve, environment=version.environment) as bridge:
        try:
            yield bridge
        finally:
            if bridge.process.poll() is None:
                bridge.stop()
            else:  # another is there, which is nobody's child
                os.kill(pid(control), signal.SIGTERM)


def pid(control: Path) -> int:
    return int(ask(control, "status")["pid"])


def write(client: c.Client, value: int) -> None:
    client.ask(c.REGION_WRITE, LIVENESS + u32(value))


def wrote(client: c.Client) -> int:
    return ~int.from_bytes(client.ask(c.REGION_READ, LIVENESS)[-4:], "little") & 0xFFFF_FFFF


def killed(bridge: RunningServer, control: Path) -> str:
    """Kill the bridge under its supervisor; gives the log, once another serves."""
    before = pid(control)
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while "for operators" not in bridge.log().partition("was killed by SIGKILL")[2]:
        assert time.monotonic() < deadline, bridge.log()
        time.sleep(0.01)
    assert pid(control) != before
    return bridge.log()


# ---- By an upgrade --------------------------------------------------------------------------


def test_another_version_takes_over(old: Version, new: Version, control: Path) -> None:
    """Whatever has become of the first one's files."""
    new.change("__init__.py", '"0.1.0"', '"0.1.1"')
    with running(old, control) as bridge, bridge.client() as client:
        write(client, 7)
        first = pid(control)
        old.remove()
        assert "has handed over to 0.1.1" in new.upgrade(control)
        assert pid(control) != first
        assert wrote(client) == 7
        assert ask(control, "status")["devices"][0]["clients"] == 1


def test_a_document_that_is_not_known(old: Version, new: Version, control: Path) -> None:
    new.change("handover/document.py", "VERSION = 1\n", "VERSION = 2\n")
    with running(old, control) as bridge, bridge.client() as client:
        first = pid(control)
        with pytest.raises(subprocess.CalledProcessError) as error:
            new.upgrade(control)
        assert "knows documents of version 2, and this bridge writes 1" in error.value.stderr
        assert pid(control) == first
        write(client, 7)
        assert wrote(client) == 7


def test_one_that_fails(old: Version, new: Version, control: Path) -> None:
    """After it has all."""
    new.change("handover/resume.py", 'document["since"]', 'document["nonsense"]')
    with running(old, control) as bridge, bridge.client() as client:
        first = pid(control)
        with pytest.raises(subprocess.CalledProcessError) as error:
            new.upgrade(control)
        assert "makes no sense: KeyError('nonsense')" in error.value.stderr
        assert pid(control) == first
        write(client, 7)
        assert wrote(client) == 7
        new.change("handover/resume.py", 'document["nonsense"]', 'document["since"]')
        new.upgrade(control)
        assert wrote(client) == 7


def test_one_that_fails_to_hand_over(old: Version, control: Path) -> None:
    old.change("handover/handing.py", '"owned": [', '"owned": [nonsense for _ in "1"] + [')
    with running(old, control) as bridge, bridge.client() as client:
        with pytest.raises(subprocess.CalledProcessError) as error:
            old.upgrade(control)
        assert "a defect of the bridge" in error.value.stderr
        assert "NameError" in bridge.log()
        write(client, 7)
        assert wrote(client) == 7


@pytest.mark.parametrize("command", [(), ("supervise",)], ids=["without journal", "with journal"])
def test_what_comes_meanwhile_is_answered(
    old: Version, new: Version, control: Path, command: tuple[str, ...]
) -> None:
    """The predecessor looks at it, and leaves it alone, when the successor is all but ready."""
    ready = control.with_name("ready")
    pause = f"(__import__('pathlib').Path({str(ready)!r}).touch(), __import__('time').sleep(0.3))"
    new.change("serve.py", "confinement = _confine(", f"{pause}; confinement = _confine(")
    with running(old, control, *command) as bridge, bridge.client() as client:
        write(client, 7)
        with ThreadPoolExecutor() as pool:
            done = pool.submit(new.upgrade, control)
            while not ready.exists():
                time.sleep(0.01)
                assert not done.done()
            assert wrote(client) == 7
            done.result()


def test_another_user(old: Version, new: Version, control: Path) -> None:
    """Whose successor would be that user's, too."""
    old.change("management/methods.py", "os.geteuid()", "12345")
    with running(old, control):
        with pytest.raises(subprocess.CalledProcessError) as error:
            new.upgrade(control)
        assert "was started by user 12345: upgrade as that user" in error.value.stderr


def test_another_container(old: Version, new: Version, control: Path) -> None:
    """In which a process has another number."""
    old.change("management/methods.py", "process_namespace()\n", "12345\n")
    with running(old, control):
        with pytest.raises(subprocess.CalledProcessError) as error:
            new.upgrade(control)
        assert "the bridge is in another container: upgrade it in there" in error.value.stderr


def test_one_that_ends_when_it_is_to_serve(old: Version, new: Version, control: Path) -> None:
    """Its predecessor goes on, and isn't mistaken for one that has left."""
    new.change("handover/upgrade.py", '({"ready": True})', '({"ready": True}); os._exit(9)')
    until_gone = "__import__('select').select([link._socket], [], [])"
    old.change("handover/handing.py", "link.leave()", f"{until_gone}; link.leave()")
    with running(old, control, "supervise") as bridge, bridge.client() as client:
        write(client, 7)
        first = pid(control)
        with pytest.raises(subprocess.CalledProcessError):
            new.upgrade(control)
        assert pid(control) == first
        assert wrote(client) == 7
        killed(bridge, control)
        assert wrote(client) == 7


# ---- After a crash --------------------------------------------------------------------------


def test_the_same_version_goes_on(old: Version, control: Path) -> None:
    with running(old, control, "supervise") as bridge, bridge.client() as client:
        write(client, 7)
        killed(bridge, control)
        assert wrote(client) == 7


@pytest.mark.parametrize(
    ("file", "constant", "said"),
    [
        ("handover/document.py", "VERSION", "its document has version 1, this bridge knows 2"),
        ("handover/journal.py", "FORMAT", "its journal has format 1, this bridge knows 2"),
    ],
)
def test_what_another_version_left(
    old: Version, control: Path, file: str, constant: str, said: str
) -> None:
    """Its client is lost, and who comes next is served."""
    with running(old, control, "supervise") as bridge:
        with bridge.client() as client:
            old.change(file, f"\n{constant} = 1\n", f"\n{constant} = 2\n")
            assert said in killed(bridge, control)
            client.wait_until_hung_up()
        with bridge.client() as client:
            write(client, 7)
            assert wrote(client) == 7
