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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from vfio_user_bridge.listener import listen
from vfio_user_bridge.management.control import ask
from vfio_user_bridge.trace.reader import Trace
from vfio_user_bridge.trace.records import End, Read, Write

from . import client as c
from .descriptors import memory_files
from .running_server import PATIENCE, RunningServer, server
from .visit import IOVA, PAGE
from .wire import dma_map, region, u32

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
def running(
    version: Version, control: Path, *command: str, options: Sequence[str] = ()
) -> Iterator[RunningServer]:
    path = control.with_name("edu.sock")
    options = ("--socket-path", str(path), "--control", str(control), *options)
    serve = [*PROGRAM, *command, "serve", "model:edu"]
    with server(path, *options, command=serve, environment=version.environment) as bridge:
        try:
            yield bridge
        finally:
            if bridge.process.poll() is None:
                bridge.stop()
            elif control.exists():  # another is there, which is nobody's child
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


def test_what_is_in_the_folder_of_the_old_one_is_not_run(
    old: Version, new: Version, control: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Itself, or what somebody has put there."""
    new.change("__init__.py", '"0.1.0"', '"0.1.1"')
    folder = control.parent
    monkeypatch.chdir(folder / "old")
    with running(old, control):
        (folder / "old/msgpack.py").write_text("raise SystemExit('it was run')")
        monkeypatch.chdir(folder)
        new.environment = {"PYTHONPATH": "new:."}
        assert "has handed over to 0.1.1" in new.upgrade(control)
        assert ask(control, "status")["version"] == "0.1.1"


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
    old.change("handover/handing.py", '"owned": {', '"owned": nonsense or {')
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


def test_a_socket_in_whose_place_is_another(old: Version, control: Path) -> None:
    """Its file isn't ours to remove."""
    with running(old, control) as bridge, contextlib.ExitStack() as stack:
        bridge.path.unlink()
        another = listen(bridge.path, 0o600)
        stack.callback(another.close)
        old.upgrade(control)
        os.kill(pid(control), signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while control.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert bridge.path.exists()


def test_a_group_that_was_passed_in(old: Version, new: Version, control: Path) -> None:
    """As a descriptor, whose number is another file's in the new one."""
    argv = "sys.argv[1:]"
    old.change("management/methods.py", argv, f"[*{argv}, '--group-fd', '0']")
    with running(old, control):
        assert "has handed over to" in new.upgrade(control)


@pytest.mark.parametrize("words", [["unbind", "0000:00:00.0"], ["--help"], []])
def test_another_command(old: Version, new: Version, control: Path, words: list[str]) -> None:
    """Of a bridge that isn't itself any more."""
    old.change("management/methods.py", "sys.argv[1:]", repr(words))
    with running(old, control):
        with pytest.raises(subprocess.CalledProcessError) as error:
            new.upgrade(control)
        assert "the other bridge is gone" in error.value.stderr  # after it was told to serve that


def test_another_container(old: Version, new: Version, control: Path) -> None:
    """In which a process has another number."""
    old.change("management/methods.py", "process_namespace()\n", "12345\n")
    with running(old, control):
        with pytest.raises(subprocess.CalledProcessError) as error:
            new.upgrade(control)
        assert "the bridge is in another container: upgrade it in there" in error.value.stderr


def test_one_that_ends_when_it_is_to_serve(old: Version, new: Version, control: Path) -> None:
    """Its predecessor goes on, and isn't mistaken for one that has left."""
    new.change("handover/link.py", '({"ready": True})', '({"ready": True}); os._exit(9)')
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


class Late:
    """A successor that stands still once it has all, and is given up; it isn't killed for that."""

    def __init__(self, old: Version, new: Version, folder: Path) -> None:
        self._gate = folder / "gate"
        os.mkfifo(self._gate)
        wait = f"open({str(self._gate)!r}).read()"
        old.change("handover/link.py", "FROZEN = 10.0", "FROZEN = 0.1")
        new.change("handover/predecessor.py", "learn()\n", f"learn(); {wait}\n")
        new.change("handover/start.py", "successor.kill()", "pass")
        ready = 'self._say({"ready": True})'
        new.change("handover/link.py", ready, f"os.write(2, b'is ready'); {ready}")
        self._new = new

    @contextlib.contextmanager
    def upgrade(self, bridge: RunningServer, control: Path) -> Iterator[None]:
        """Within, it stands; afterwards it has gone on, and ended."""
        with ThreadPoolExecutor() as pool:
            done = pool.submit(self._new.upgrade, control)
            with self._gate.open("w"):
                bridge.told("not replaced: the other bridge has said nothing")
                yield
            with pytest.raises(subprocess.CalledProcessError) as error:
                done.result()  # its standard error is the successor's, too
            assert "is ready" in error.value.stderr


RULE = '[[rule]]\nregion = "bar0"\noffset = 0x2000\naction = "deny"\n'


def test_one_that_is_late_changes_nothing(old: Version, new: Version, control: Path) -> None:
    """Its predecessor goes on with the client, and can be killed after."""
    late = Late(old, new, control.parent)
    policy, path = control.with_name("policy"), control.with_name("trace")
    policy.write_text(RULE)
    options = ("--policy", str(policy))
    with running(old, control, "supervise", options=options) as bridge, bridge.client() as client:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        ask(control, "record", files=[file], hand=True)
        write(client, 5)
        policy.write_text(RULE.replace("0x2000", "0x3000"))
        with late.upgrade(bridge, control):
            write(client, 7)
            client.ask(c.REGION_READ, region(0x2000, 0, 4))
        policy.write_text(RULE)
        (rule,) = ask(control, "status")["devices"][0]["rules"]
        assert rule["hits"] == 1
        ask(control, "stop-recording")
        with Trace(path) as trace:
            assert [type(record) for record in trace] == [Write, Write, Read, End]
        killed(bridge, control)
        assert wrote(client) == 7


def test_one_that_is_late_for_who_came_meanwhile(old: Version, new: Version, control: Path) -> None:
    late = Late(old, new, control.parent)
    with (
        running(old, control, "supervise") as bridge,
        memory_files(1, PAGE) as (ram,),
        ExitStack() as stack,
    ):
        with late.upgrade(bridge, control):
            client = stack.enter_context(bridge.client())
            client.ask(c.DMA_MAP, dma_map(IOVA, PAGE), [ram])
            write(client, 7)
        killed(bridge, control)
        assert wrote(client) == 7
        assert ask(control, "status")["devices"][0]["maps"] == 1


def test_one_whose_successor_is_succeeded_at_once(
    old: Version, new: Version, control: Path
) -> None:
    """Both are done by the time at which the first would say so."""
    command = [*PROGRAM, "upgrade", "--control", str(control)]
    again = f"__import__('subprocess').run({command!r}, env={os.environ | old.environment!r})"
    new.change("handover/start.py", "if not _serves(", f"if not {again} or not _serves(")
    with running(old, control) as bridge, bridge.client() as client:
        write(client, 7)
        with pytest.raises(subprocess.CalledProcessError) as error:
            new.upgrade(control)
        assert "without saying whether pid" in error.value.stderr
        assert "has handed over to" in error.value.stdout
        assert wrote(client) == 7


def test_one_that_is_told_to_end_meanwhile(old: Version, control: Path) -> None:
    told = "link.tell(document, files)"
    old.change("handover/handing.py", told, f"{told}; os.kill(os.getpid(), 15)")
    with running(old, control, options=("--confine", "off")) as bridge:
        with pytest.raises(subprocess.CalledProcessError):
            old.upgrade(control)
        assert bridge.process.wait(PATIENCE) == 0
        assert "not replaced: this bridge was told to end" in bridge.log()
        assert not control.exists()


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
