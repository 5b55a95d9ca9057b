# SPDX-License-Identifier: BSD-3-Clause
"""What systemd does with descriptors that a service has it keep, and with a new main process.

Trials of systemd alone, under the bridge's own unit and its hardening: told.py runs in place of
`serve`. Each is a row of docs/developers/handover.md.
"""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration import devices, page
from vfio_user_bridge.kernel import pci

from . import units
from .units import binding, prop, service, systemctl, unit_socket
from .waiting import PATIENCE, until

DEVICE = devices.EDU_ALONE
UNIT, SOCKET, BINDING = service(DEVICE), unit_socket(DEVICE), binding(DEVICE)
DROP_INS = Path("/etc/systemd/system")
TOLD = Path(__file__).with_name("told.py")
PATH = "/run/vfio-user-bridge-control/told"
HEIR = f"{PATH}-heir"
MOST = 30
#: sleeps until this, so that what the service manager was told has been done; 0.1 s are enough
SETTLED = 0.5

#: what ExecReload= runs: a child of it outlives it, and serves
RELOAD = f"""
import os, sys
sys.path.insert(0, "{TOLD.parent}")
import told
ready, tell = os.pipe()
if not os.fork():
    os.setsid()
    os.write(tell, b"!")
    told.serve("{HEIR}")
os.read(ready, 1)
"""


def configure(*lines: str, listener: str = "FileDescriptorName=listener") -> None:
    """By drop-ins. What they say already costs nothing: a reload takes systemd seconds here."""
    start = f"ExecStart=/usr/bin/python3 -B {TOLD} {PATH}"
    store = f"FileDescriptorStoreMax={MOST}"
    quick = ("RestartSec=0", "RestartSteps=", "RestartMaxDelaySec=infinity", "WatchdogSec=0")
    written = (
        write(UNIT, "[Service]", "ExecStart=", start, store, *quick, *lines),
        write(SOCKET, "[Socket]", listener),
    )
    if any(written):
        systemctl("daemon-reload")


def write(unit: str, *lines: str) -> bool:
    """Whether that is news."""
    path = DROP_INS / f"{unit}.d" / "test.conf"
    path.parent.mkdir(exist_ok=True)
    before = path.read_text() if path.exists() else None
    path.write_text("\n".join((*lines, "")))
    return path.read_text() != before


def tell(code: str, path: str = PATH) -> Any:
    """Have the service do it, once it is there; gives its `answer`, None if it dies of it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        assert time.monotonic() < deadline, "nobody there"
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(path)
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.01)
                continue
            with contextlib.suppress(ConnectionError):  # it dies of it
                sock.sendall(code.encode())
                sock.shutdown(socket.SHUT_WR)
                told = sock.makefile().read()
                return ast.literal_eval(told) if told else None
            return None


def main() -> int:
    return units.main_process(UNIT)


def kill() -> None:
    units.kill(UNIT)


def another(before: int) -> None:
    units.await_another(UNIT, before)


def passed() -> dict[str, list[int]]:
    got = tell("answer = passed")
    assert isinstance(got, dict)
    return got


def kept() -> int:
    time.sleep(SETTLED)
    return int(prop("NFileDescriptorStore", UNIT))


def forget(*units: str) -> None:
    """Their drop-ins."""
    for unit in units:
        folder = DROP_INS / f"{unit}.d"
        for drop_in in folder.iterdir():
            drop_in.unlink()
        folder.rmdir()
    systemctl("daemon-reload")


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    """The device is vfio-pci's from the first test to the last, which saves each some seconds."""
    page.run("systemd.md", {}, section="Once")
    write(BINDING, "[Unit]", "StopWhenUnneeded=no")
    yield
    systemctl("stop", BINDING)
    forget(BINDING, UNIT, SOCKET)


@pytest.fixture(autouse=True)
def running() -> Iterator[None]:
    configure()
    systemctl("start", UNIT)
    yield
    systemctl("stop", UNIT, SOCKET)
    systemctl("reset-failed")


# ---- The store --------------------------------------------------------------------------------


def test_what_was_stored_before_sigkill_is_there_after() -> None:
    """Twenty times: the datagram is read before the process's end is."""
    for number in range(20):
        before = main()
        tell(f"store('event{number}', os.eventfd({number})); os.kill(os.getpid(), 9)")
        another(before)
    names = [f"event{number}" for number in reversed(range(20))]
    assert list(passed()) == ["listener", *names]  # sockets first, and the newest of the store
    values = tell("answer = [os.eventfd_read(passed[f'event{n}'][0]) for n in range(1, 20)]")
    assert values == list(range(1, 20))


def test_every_kind_comes_back_as_it_was() -> None:
    group = pci.find(DEVICE).iommu_group
    opened = f"""
import sys
sys.path.insert(0, "{TOLD.parents[2]}")
from vfio_user_bridge.kernel import vfio
memory, (near, far) = os.memfd_create("memory"), socket.socketpair()
os.write(memory, b"hello")
near.send(b"unread")
container, group = vfio.container_open(), vfio.group_open({group})
vfio.group_set_container(group, container)
vfio.container_set_iommu(container, vfio.VFIO_TYPE1v2_IOMMU)
fds = dict(memory=memory, near=near.fileno(), far=far.fileno(), container=container, group=group)
fds["device"] = vfio.group_get_device(group, "{DEVICE}")
for name, fd in fds.items():
    store(name, fd)
"""
    tell(opened)
    kill()
    seen = f"""
import sys
sys.path.insert(0, "{TOLD.parents[2]}")
from vfio_user_bridge.kernel import vfio
fds = {{name: fds[0] for name, fds in passed.items()}}
answer = [
    os.lseek(fds["memory"], 0, os.SEEK_CUR), os.read(fds["far"], 100),
    vfio.group_flags(fds["group"]), len(vfio.device_info(fds["device"])),
    {{os.get_inheritable(fd) for fd in fds.values()}},
]
"""
    assert tell(seen) == [5, b"unread", 3, 24, {True}]


def test_names() -> None:
    cases: tuple[tuple[str, list[str]], ...] = (
        # the same open file again: the first name stays
        ("e = os.eventfd(0); store('one', e); store('two', os.dup(e))", ["one"]),
        # another open of the same file
        (
            "m = os.memfd_create('m'); store('w', m);"
            " store('r', os.open(f'/proc/self/fd/{m}', os.O_RDONLY))",
            ["r", "w"],
        ),
        ("store('same', os.eventfd(0)); store('same', os.eventfd(0))", ["same", "same"]),
        ("store('both', os.eventfd(0), os.eventfd(0))", ["both", "both"]),
        ("store('a:b', os.eventfd(0))", ["stored"]),
        ("store('x' * 256, os.eventfd(0))", ["stored"]),
        ("store('x' * 255, os.eventfd(0))", ["x" * 255]),
        # more than FileDescriptorStoreMax=
        (f"[store('m', os.eventfd(0)) for _ in range({MOST} + 5)]", ["m"] * MOST),
        ("store('e', os.eventfd(0)); notify('FDSTOREREMOVE=1\\nFDNAME=e')", []),
        ("notify('FDSTOREREMOVE=1\\nFDNAME=unknown')", []),
        # one whose other end is closed
        ("a, b = socket.socketpair(); store('s', a.fileno(), more=''); b.close()", []),
        ("a, b = socket.socketpair(); store('s', a.fileno()); b.close()", ["s"]),
    )
    for code, names in cases:
        tell(code)
        assert kept() == len(names), code
        kill()
        got = passed()
        assert got.pop("listener") == [3]
        assert sorted(name for name, fds in got.items() for _ in fds) == names, code
        tell("".join(f"notify('FDSTOREREMOVE=1\\nFDNAME={name}'); " for name in {*names}))


def test_there_may_be_more_than_the_default_limit_of_descriptors() -> None:
    """As the unit says LimitNOFILE=; else Python wouldn't even start beside them."""
    many = 1100
    configure(f"FileDescriptorStoreMax={many}")
    systemctl("restart", UNIT)
    tell(f"for n in range({many}): e = os.eventfd(n); store(f'e{{n}}', e); os.close(e)")
    assert kept() == many
    kill()
    assert tell(f"answer = os.eventfd_read(passed['e{many - 1}'][0])") == many - 1


def test_a_sockets_default_name_is_many() -> None:
    """Its unit's name, where each colon begins another: so ours must say FileDescriptorName=."""
    systemctl("stop", UNIT, SOCKET)
    configure(listener="FileDescriptorName=")
    systemctl("start", UNIT)
    count, names = tell("answer = os.environ['LISTEN_FDS'], os.environ['LISTEN_FDNAMES']")
    assert (count, names) == ("1", SOCKET)
    assert len(names.split(":")) == 3


@pytest.mark.parametrize(
    ("how", "stays"),
    [
        (lambda: systemctl("restart", UNIT), True),
        (lambda: systemctl("stop", UNIT), False),
        (lambda: tell("os._exit(0)"), False),
        (lambda: tell("os._exit(1)"), True),
        (lambda: tell("os._exit(2)"), False),  # RestartPreventExitStatus=
    ],
    ids=["restart", "stop", "exit 0", "exit 1", "exit 2"],
)
def test_how_it_ends_decides(how: Any, stays: bool) -> None:
    tell("store('e', os.eventfd(0))")
    before = main()
    how()
    if not stays:
        until(lambda: prop("ActiveState", UNIT) in ("inactive", "failed"))
        systemctl("start", UNIT)
    another(before)
    assert ("e" in passed()) == stays


def test_how_soon_it_is_back(capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, for docs/developers/handover.md: from SIGKILL until it answers."""
    for delay in ("0", "100ms", "1s"):
        configure(f"RestartSec={delay}")
        start = time.monotonic()
        for _ in range(3):
            before = main()
            os.kill(before, signal.SIGKILL)
            while not tell(f"answer = os.getpid() != {before}"):
                pass
        with capsys.disabled():
            print(f"RestartSec={delay}: {(time.monotonic() - start) / 3:.2f} s")


# ---- Another main process ---------------------------------------------------------------------


@pytest.mark.parametrize(("access", "itself"), [("main", False), ("exec", False), ("all", True)])
def test_reload_brings_another_main_process(access: str, itself: bool) -> None:
    script = Path("/usr/local/lib/reload.py")  # /tmp is the service's own
    script.write_text(RELOAD)
    reload = f"ExecReload=/usr/bin/python3 -B {script}"
    configure(f"NotifyAccess={access}", "ExecReload=", reload)
    systemctl("restart", UNIT)
    before = main()
    tell("open('/tmp/shared', 'w').close()")
    systemctl("reload", UNIT)
    heir = tell("answer = os.getpid()", HEIR)
    assert main() == before
    # It is what the main process is: of the same user, confined and alone with its /tmp.
    who = "answer = os.getuid(), os.listdir('/tmp'), open('/proc/self/cgroup').read()"
    assert tell(who, HEIR) == tell(who)
    assert "LISTEN_FDS" not in tell("answer = dict(os.environ)", HEIR)
    assert ("NOTIFY_SOCKET" in tell("answer = dict(os.environ)", HEIR)) == (access != "main")
    # With "main" or "exec" only the main process may say who follows it.
    tell("notify(f'MAINPID={os.getpid()}')", HEIR)
    time.sleep(SETTLED)
    assert (main() == heir) == itself
    tell(f"notify('MAINPID={heir}')")
    until(lambda: main() == heir)
    tell("os._exit(0)")
    tell("store('e', os.eventfd(0))", HEIR)
    assert kept() == 1
    assert (prop("ActiveState", UNIT), main()) == ("active", heir)
    # It is looked after as any other.
    os.kill(heir, signal.SIGKILL)
    another(heir)
    assert "e" in passed()
    script.unlink()


def test_a_reload_that_fails_changes_nothing() -> None:
    configure("ExecReload=", "ExecReload=/bin/false")
    before = main()
    with pytest.raises(subprocess.CalledProcessError):
        systemctl("reload", UNIT)
    assert (prop("ActiveState", UNIT), main()) == ("active", before)
