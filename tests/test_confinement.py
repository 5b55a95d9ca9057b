# SPDX-License-Identifier: BSD-3-Clause
"""What a confined process can't do any more, each tried by a process that was confined, and what it
still can.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from vfio_user_bridge import syscall_filter
from vfio_user_bridge.confinement import find_user
from vfio_user_bridge.errors import UsageError
from vfio_user_bridge.kernel import landlock

from . import client as c
from .engines import LIBRARY, need
from .processes import status
from .running_server import server
from .wire import region

SEIZED = {
    "open a device": "os.open('/dev/null', os.O_RDWR)",
    "open VFIO": "os.open('/dev', os.O_PATH); os.open('/dev/zero', os.O_RDONLY)",
    "read a file": "open('/etc/passwd')",
    "list a folder": "os.listdir('/etc')",
    "write a file": "open('/tmp/vfio-user-bridge-was-here', 'w')",
    "write beside its socket": "open(FOLDER + '/other', 'w')",
    "make a folder there": "os.mkdir(FOLDER + '/folder')",
    "run a program": "os.execv('/bin/true', ['true'])",
    "run its own": "os.execv(sys.executable, ['python3'])",
    "be another user": "os.setuid(os.getuid() + 1)",
    "be in more groups": "os.setgroups([1])",
    "use the network": "socket.create_connection(('127.0.0.1', 9))",
    "signal another": "os.kill(os.getppid(), 0)",
}
FILTERED = {
    "fork": "os.fork()",
    "make files into programs": "mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)",
    "have a socket of another family": "socket.socket(socket.AF_NETLINK)",
    "change modes": "os.chmod(FOLDER, 0o777)",
    "ask other devices": "fcntl.ioctl(0, termios.TIOCSTI, b'x')",
    "look into others": "os.pidfd_open(os.getppid())",
    "have another priority": "os.nice(1)",
}
LEFT = {
    "start a thread": "t = threading.Thread(target=int); t.start(); t.join()",
    "end while a thread goes on": "threading.Thread(target=doze, daemon=True).start()",
    "use a module for the first time": "import colorsys",
    "say what time it is": "assert time.strftime('%H', time.localtime(0)) == NIGHT",
    "explain itself": "open('/proc/self/status').read()",
    "take a client's memory": "mmap.mmap(MEMORY, 4096)",
    "wait": "select.select([], [], [], 0); time.sleep(0)",
    "make an eventfd": "os.eventfd(0)",
    "remove its socket": "os.unlink(FOLDER + '/socket')",
    "show where an error came from": "traceback.format_stack()",
}
SCRIPT = """
import fcntl, mmap, os, select, socket, sys, tempfile, termios, threading, time, traceback
from pathlib import Path
from vfio_user_bridge.confinement import confine
FOLDER = sys.argv[1]
NIGHT = time.strftime('%H', time.localtime(0))
MEMORY = os.memfd_create("memory"); os.truncate(MEMORY, 4096)
def doze():
    while True:
        time.sleep(1e-5)
confine(None, [Path(FOLDER)], library=sys.argv[2] == "True")
try:
    exec(sys.argv[3])
except PermissionError:
    print("can't", flush=True)
else:
    print("can", flush=True)
"""


def attempt(folder: Path, what: str, *, library: bool = False, scratch: Path | None = None) -> str:
    scratch = scratch or folder / "scratch"
    scratch.mkdir(exist_ok=True)
    tried = subprocess.run(
        (sys.executable, "-c", SCRIPT, str(folder), str(library), what),
        env={**os.environ, "TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        check=True,
    )
    return tried.stdout.strip()


@pytest.fixture(scope="module", autouse=True)
def _the_host_can_confine() -> None:
    """Or nothing here would be tested."""
    assert landlock.abi()
    assert syscall_filter.binding()


@pytest.mark.parametrize("what", [*SEIZED, *FILTERED])
def test_seized(tmp_path: Path, what: str) -> None:
    assert attempt(tmp_path, {**SEIZED, **FILTERED}[what]) == "can't"


@pytest.mark.parametrize("what", SEIZED)
def test_seized_without_a_filter_as_for_libvfio_user(tmp_path: Path, what: str) -> None:
    can = {"use the network", "signal another"} if landlock.abi() < 6 else set()
    if what not in can:
        assert attempt(tmp_path, SEIZED[what], library=True) == "can't"


@pytest.mark.parametrize("what", LEFT)
def test_left(tmp_path: Path, what: str) -> None:
    (tmp_path / "socket").touch()
    assert attempt(tmp_path, LEFT[what]) == "can"


def test_libvfio_user_has_its_sockets(tmp_path: Path) -> None:
    listen = """
with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
    listener.bind(folder + "/library")
    listener.listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(folder + "/library")
"""
    assert attempt(tmp_path, listen, library=True) == "can"
    assert not list((tmp_path / "scratch").iterdir())
    # Also where our own sockets are.
    listen = listen.replace("TemporaryDirectory()", "TemporaryDirectory(dir=FOLDER)")
    assert attempt(tmp_path, listen, library=True, scratch=tmp_path) == "can"


def test_serve_by_libvfio_user(tmp_path: Path) -> None:
    need(LIBRARY)
    path = tmp_path / "edu.sock"
    options = ("--socket-path", str(path), "--engine", LIBRARY)
    with server(path, *options) as edu:
        for _ in range(2):
            with edu.client() as client:
                client.ask(c.REGION_READ, region(0, 0, 4))
        edu.stop()


def test_serve_is_confined(tmp_path: Path) -> None:
    path = tmp_path / "edu.sock"
    with server(path, "--socket-path", str(path), "--confine", "all") as edu:
        seen = status(edu.process.pid)
        assert seen["NoNewPrivs"] == "1"
        assert seen["Seccomp"] == "2"  # SECCOMP_MODE_FILTER
        assert int(seen["CapEff"], 16) & ~(1 << 14) == 0  # but CAP_IPC_LOCK
        assert seen["CapEff"] == seen["CapPrm"] == seen["CapBnd"]
        limits = Path(f"/proc/{edu.process.pid}/limits").read_text()
        assert "Max core file size        0                    0 " in limits
        with edu.client():  # who is served after it is logged
            assert "confined: user" in edu.log()
        edu.stop()
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_serve_as_another_user(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    path = tmp_path / "edu.sock"
    with server(path, "--socket-path", str(path), "--user", "nobody") as edu:
        seen = status(edu.process.pid)
        assert seen["Uid"].split() == [str(nobody.pw_uid)] * 4
        assert seen["Gid"].split() == [str(nobody.pw_gid)] * 4
        assert seen["Groups"] == str(nobody.pw_gid)
        assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (nobody.pw_uid, 0o600)
        with edu.client():
            pass
        assert edu.stop() == ""


def test_not_confined(tmp_path: Path) -> None:
    path = tmp_path / "edu.sock"
    with server(path, "--socket-path", str(path), "--confine", "off") as edu:
        assert status(edu.process.pid)["Seccomp"] == status(os.getpid())["Seccomp"]
        with edu.client():
            assert "confined: no confinement: --confine off" in edu.log()


def test_what_is_lacking_is_said_and_an_error_if_all_must_be_there() -> None:
    script = """
import sys
from vfio_user_bridge.confinement import confine
from vfio_user_bridge.errors import BridgeError
sys.modules["seccomp"] = sys.modules["pyseccomp"] = None
try:
    confine(None, [], whole=True)
except BridgeError as error:
    print(error)
print(confine(None, []))
"""
    said = subprocess.run(
        (sys.executable, "-c", script), capture_output=True, text=True, check=True
    )
    error, summary = said.stdout.splitlines()
    lacking = "no seccomp (install python3-seccomp, or by pip pyseccomp)"
    assert error == f"--confine all can't be had: {lacking}; auto does without"
    assert summary.startswith("user ")
    assert summary.endswith(lacking)


def test_a_sandbox_around_that_forbids_it_is_borne() -> None:
    script = """
import errno, pyseccomp
from vfio_user_bridge.confinement import confine
around = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
for name in ("landlock_create_ruleset", "seccomp"):
    around.add_rule(pyseccomp.ERRNO(errno.EPERM), name)
around.add_rule(pyseccomp.ERRNO(errno.EPERM), "prctl", pyseccomp.Arg(0, pyseccomp.EQ, 22))
around.load()
print(confine(None, []))
"""
    command = (sys.executable, "-c", script)
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "no Landlock (Operation not permitted: " in said
    assert "no seccomp (" in said
    assert "no new privileges" in said


@pytest.mark.parametrize("name", ["no such user", "99999999999999999999", "-1", ""])
def test_who_is_not_there(name: str) -> None:
    with pytest.raises(UsageError, match="there is no user"):
        find_user(name)


def test_a_user_by_number() -> None:
    assert find_user("0") == find_user("root")
