# SPDX-License-Identifier: BSD-3-Clause
"""`supervise`: what is kept for the next bridge, and when there is a next one."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfio_user_bridge.handover import fdstore
from vfio_user_bridge.handover.restarts import Restarts, exit_status
from vfio_user_bridge.kernel import processes

from .running_server import server
from .supervised import PATIENCE, Supervised, supervised

COMMAND = [sys.executable, "-m", "vfio_user_bridge", "supervise"]


@pytest.fixture
def bridge() -> Iterator[Supervised]:
    with supervised() as bridge:
        yield bridge


def await_end(pid: int) -> None:
    """Wait until nothing is left of a process that ends, or is killed."""
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- the store ------------------------------------------------------------------------------


def test_what_is_stored_is_passed_on(bridge: Supervised) -> None:
    assert bridge.ask("[it for it in os.environ if it.startswith('LISTEN_')]") == []
    assert bridge.ask("os.environ['FDSTORE']") == "8"
    bridge.done(
        "store('memory', file := os.memfd_create('file'))",
        "os.write(file, b'written')",
        "store('event', os.eventfd(7))",
        "ours, theirs = socket.socketpair()",
        "theirs.send(b'sent')",
        "store('', ours.fileno())",
        "store('a:b', theirs.fileno())",
    )
    first = bridge.pid
    for _ in range(2):
        assert bridge.kill() != first
        assert bridge.ask("int(os.environ['LISTEN_PID'])") == bridge.pid
        assert bridge.passed() == ["memory", "event", "stored", "stored"]
        assert bridge.ask("os.pread(3, 99, 0)") == b"written"
        assert bridge.ask("os.lseek(3, 0, os.SEEK_CUR)") == len("written")
        assert bridge.ask("socket.socket(fileno=os.dup(5)).recv(99, socket.MSG_PEEK)") == b"sent"
        assert bridge.ask("sorted(map(int, os.listdir('/proc/self/fd')))[:7]") == list(range(7))
    assert bridge.ask("os.eventfd_read(4)") == 7


def test_an_open_file_is_kept_once(bridge: Supervised) -> None:
    bridge.done(
        "one, other = os.eventfd(0), os.eventfd(0)",
        "store('one', one, os.dup(one))",
        "store('again', one)",
        "store('one', other)",
    )
    bridge.kill()
    assert bridge.passed() == ["one", "one"]


def test_what_is_removed_is_closed(bridge: Supervised) -> None:
    bridge.done(
        "ours, theirs = os.pipe()",
        "store('pipe', theirs)",
        "os.close(theirs)",
        "store('other', os.eventfd(0))",
        "tell('FDSTOREREMOVE=1\\nFDNAME=pipe')",
    )
    assert bridge.ask("os.read(ours, 1)") == b""
    bridge.kill()
    assert bridge.passed() == ["other"]


def test_there_is_an_end_to_it() -> None:
    with supervised(most=2) as bridge:
        bridge.done("store('many', *(os.eventfd(0) for _ in range(3)))")
        bridge.told("no room for more descriptors: many isn't kept")
        bridge.kill()
        assert bridge.passed() == ["many"] * 2


def test_more_than_the_limits_of_select_and_of_most_processes() -> None:
    count, limited = 1500, ("sh", "-c", 'ulimit -S -n 1024 && exec "$@"', "sh")
    with supervised(*limited, most=count) as bridge:
        bridge.done(
            "def some(): return [os.eventfd(0) for _ in range(100)]",
            "def drop(fds): list(map(os.close, fds))",
            f"for _ in range({count // 100}): store('many', *(fds := some())); drop(fds)",
        )
        for _ in range(2):
            bridge.kill()
            assert bridge.passed() == ["many"] * count
            assert bridge.ask(f"os.readlink('/proc/self/fd/{count + 2}')") == (
                "anon_inode:[eventfd]"
            )
        with subprocess.Popen(["sleep", "99"]) as successor:
            bridge.do(f"tell('MAINPID={successor.pid}')", "os._exit(0)")
            successor.kill()
        assert bridge.started()


@pytest.mark.parametrize("name", ["", "a:b", "ä", "a\tb", "a" * 256])
def test_names_that_cannot_be(name: str) -> None:
    assert fdstore.valid(name) == "stored"
    assert fdstore.valid("kept-file-1-2-rw") == "kept-file-1-2-rw"


def test_where_open_files_cannot_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare_files(*_: int) -> int:
        raise PermissionError

    monkeypatch.setattr(fdstore, "compare_files", compare_files)
    store = fdstore.FdStore(8)
    first, second = os.pipe()
    for name, fd in (("a", first), ("a", first), ("b", first), ("a", second)):
        assert store.add(name, fd)
    assert [name for name, _ in store] == ["a", "b", "a"]
    for fd in (first, second):
        os.close(fd)
    for name in "ab":
        store.remove(name)
    assert len(store) == 0


def test_comparing_open_files() -> None:
    first, second = os.eventfd(0), os.eventfd(0)
    again = os.dup(first)
    assert processes.compare_files(first, again) == 0
    assert processes.compare_files(first, second) == -processes.compare_files(second, first) != 0
    for fd in (first, second, again):
        os.close(fd)


def test_that_the_supervisor_leaks_nothing(bridge: Supervised) -> None:
    descriptors = Path(f"/proc/{bridge.process.pid}/fd")
    bridge.done("store('kept', os.eventfd(0))")
    before = len(list(descriptors.iterdir()))
    for _ in range(10):
        bridge.done("store('passing', os.eventfd(0))", "tell('FDSTOREREMOVE=1\\nFDNAME=passing')")
        bridge.kill()
    assert bridge.passed() == ["kept"]
    assert len(list(descriptors.iterdir())) == before


def test_what_is_passed_in_is_passed_on() -> None:
    passing = 'LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=given exec "$@" 3</proc/version'
    with supervised("sh", "-c", passing, "sh") as bridge:
        assert bridge.passed() == ["given"]
        bridge.done("store('kept', os.eventfd(0))")
        bridge.kill()
        assert bridge.passed() == ["given", "kept"]
        assert bridge.ask("os.readlink('/proc/self/fd/3')") == "/proc/version"
        assert bridge.ask("int(os.environ['LISTEN_PID'])") == bridge.pid


def test_a_stranger_is_not_heard(bridge: Supervised) -> None:
    ours, theirs = socket.socketpair()
    with ours, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.connect("\0" + bridge.ask("os.environ['NOTIFY_SOCKET']")[1:])
        socket.send_fds(stranger, [b"FDSTORE=1\nFDNAME=mine"], [theirs.fileno()])
        theirs.close()
        assert ours.recv(1) == b""  # nobody keeps the other end
    bridge.told(f"pid {os.getpid()} isn't the bridge: not heard")
    bridge.kill()
    assert bridge.passed() == []


def test_only_the_bridge_itself_is_heard(bridge: Supervised) -> None:
    bridge.done(
        "if not (child := os.fork()): store('mine', os.eventfd(0)), os._exit(0)",
        "os.waitpid(child, 0)",
    )
    bridge.told("isn't the bridge: not heard")
    bridge.kill()
    assert bridge.passed() == []


def test_as_many_as_can_be_passed_on() -> None:
    """Twice, for a moment, in the process that gets them."""
    with supervised("prlimit", "--nofile=200:200", most=4096) as bridge:
        most = int(bridge.ask("os.environ['FDSTORE']"))
        assert 0 < most < 100
        bridge.done("for _ in range(99): store('many', fd := os.eventfd(0)); os.close(fd)")
        bridge.kill()
        assert bridge.passed() == ["many"] * most


# ---- the main process -----------------------------------------------------------------------


def test_an_end_that_is_final(bridge: Supervised) -> None:
    bridge.done("tell('READY=1')")
    bridge.do("os._exit(0)")
    assert bridge.end() == 0


def test_a_failure_before_it_was_ever_ready_is_final(bridge: Supervised) -> None:
    bridge.kill()
    bridge.do("os._exit(3)")
    assert bridge.end() == 3


def test_a_failure_is_not_final(bridge: Supervised) -> None:
    bridge.done("tell('READY=1')")
    for status in (1, 2, 3):
        bridge.do(f"os._exit({status})")
        bridge.started()
        bridge.told(f"ended with status {status}; starting it again in 0 s")


def test_what_it_said_last_is_heard(bridge: Supervised) -> None:
    bridge.do("tell('READY=1')", "store('last', os.eventfd(0))", "os._exit(1)")
    bridge.started()
    assert bridge.passed() == ["last"]


#: how each one ended, and after how many seconds; when the next is started
CRASH, FAILURE = -signal.SIGSEGV, 1


@pytest.mark.parametrize(
    ("ends", "pauses"),
    [
        ([(CRASH, 0)] * 9, [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]),
        ([(CRASH, 99)] * 3, [0, 0, 0]),
        ([(FAILURE, 0), (CRASH, 0.9), (CRASH, 1), (CRASH, 0)], [0, 0.1, 0, 0.1]),
        ([(None, 0), (0, 0)], [0, None]),
        ([(2, 99), (2, 0)], [0, 0.1]),
    ],
)
def test_when_it_is_started_again(
    ends: list[tuple[int | None, float]], pauses: list[float | None]
) -> None:
    restarts = Restarts(5.0)
    assert [restarts.after(*end, was_ready=True) for end in ends] == pauses


@pytest.mark.parametrize(("end", "status"), [(0, 0), (3, 3), (-9, 137)])
def test_exit_status(end: int, status: int) -> None:
    assert exit_status(end) == status


def test_a_successor_that_is_a_child(bridge: Supervised) -> None:
    bridge.done("store('kept', os.eventfd(0))", "tell('READY=1')")
    old = bridge.pid
    bridge.do(
        "if child := os.fork():",
        "    tell(f'MAINPID={child}')",
        "    os._exit(0)",
        "say(os.getpid())",
    )
    assert bridge.started() != old
    assert bridge.ask("1 + 1") == 2
    bridge.told(f"pid {bridge.pid} took over")
    successor = bridge.pid
    assert bridge.kill() not in (old, successor)
    assert bridge.passed() == ["kept"]
    bridge.told(f"pid {successor} was killed by SIGKILL")


def test_a_successor_that_is_no_child(bridge: Supervised) -> None:
    with subprocess.Popen(["sleep", "99"]) as successor:
        bridge.do(f"tell('MAINPID={successor.pid}')", "os._exit(0)")
        await_end(bridge.pid)
        successor.kill()
    bridge.started()
    bridge.told(f"pid {successor.pid} is gone; starting it again in 0 s")


def test_sigterm_is_for_the_successor(bridge: Supervised) -> None:
    with subprocess.Popen(["sleep", "99"]) as successor:
        bridge.done(f"tell('MAINPID={successor.pid}')")
        bridge.process.terminate()
        assert successor.wait(PATIENCE) == -signal.SIGTERM
    assert bridge.end() == 0


def test_a_successor_that_comes_when_all_is_to_end(bridge: Supervised) -> None:
    bridge.done("signal.signal(signal.SIGTERM, lambda *_: say('asked'))")
    bridge.process.terminate()
    assert bridge.line() == "asked"
    with subprocess.Popen(["sleep", "99"]) as successor:
        bridge.do(f"tell('MAINPID={successor.pid}')")  # once that has ended it is asked again
        assert successor.wait(PATIENCE) == -signal.SIGTERM
    bridge.do("os._exit(0)")
    assert bridge.end() == 0


def test_a_successor_that_ends_first(bridge: Supervised) -> None:
    """Whoever named it is still there, and the bridge: another would have the same clients."""
    with subprocess.Popen(["sleep", "99"]) as successor:
        bridge.done("store('kept', os.eventfd(0))", f"tell('READY=1\\nMAINPID={successor.pid}')")
        successor.kill()
    bridge.told(f"pid {successor.pid} is gone; pid {bridge.pid} goes on")
    bridge.done("store('more', os.eventfd(0))")
    bridge.do("os._exit(0)")  # as one that has handed over
    bridge.started()
    assert bridge.passed() == ["kept", "more"]


@pytest.mark.parametrize("pid", ["", "nonsense", "0", "-1", "9" * 30])
def test_a_successor_that_cannot_be(bridge: Supervised, pid: str) -> None:
    bridge.done(f"tell('MAINPID={pid}')")
    bridge.told(f"can't take pid {pid} for the bridge: ")
    bridge.kill()


def test_a_successor_that_is_gone(bridge: Supervised) -> None:
    """Killed between its being ready and its being known: somebody must serve."""
    with subprocess.Popen(["true"]) as gone:
        pass
    bridge.done("store('kept', os.eventfd(0))", "tell('READY=1')")
    bridge.do(f"tell('MAINPID={gone.pid}')", "os._exit(0)")
    bridge.started()
    bridge.told(f"pid {gone.pid}, which was to take over, is gone")
    assert bridge.passed() == ["kept"]


def test_the_supervisor_is_no_successor(bridge: Supervised) -> None:
    bridge.done("tell(f'MAINPID={os.getppid()}')")
    bridge.told(f"pid {bridge.process.pid} for the bridge: it is the supervisor")


def test_a_successor_of_another_user(bridge: Supervised) -> None:
    with subprocess.Popen(["sleep", "99"], user=os.geteuid() or 65534) as other:
        bridge.done("os.geteuid() or os.seteuid(65533)", f"tell('MAINPID={other.pid}')")
        other.kill()
    bridge.told(f"can't take pid {other.pid} for the bridge: it is another user's")
    bridge.kill()


# ---- signals, and signs of life -------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("on_term", "status"),
    [
        ("signal.SIG_DFL", 0),
        ("lambda *_: os._exit(1)", 1),
        ("lambda number, _: os._exit(number)", 15),
    ],
)
def test_being_told_to_stop(bridge: Supervised, number: int, on_term: str, status: int) -> None:
    bridge.done("tell('READY=1')", f"signal.signal(signal.SIGTERM, {on_term})")
    bridge.process.send_signal(number)
    assert bridge.end() == status


def test_being_told_to_stop_while_there_is_none() -> None:
    with supervised(longest_pause=5.0) as bridge:
        deadline = time.monotonic() + PATIENCE
        while (
            True
        ):  # each time later, unless it has lived for a second, as slow machines may let it
            os.kill(bridge.pid, signal.SIGKILL)
            bridge.told(f"pid {bridge.pid} was killed by SIGKILL; starting it again in ")
            if float(re.findall(r"again in (\S+) s", bridge.log())[-1]) >= 0.4:
                break
            assert time.monotonic() < deadline
            bridge.started()
        bridge.process.terminate()
        assert bridge.end() == 0


def test_sighup_is_nothing(bridge: Supervised) -> None:
    bridge.process.send_signal(signal.SIGHUP)
    assert bridge.ask("1 + 1") == 2
    bridge.do("os.kill(os.getpid(), signal.SIGHUP)")
    assert bridge.ask("2 + 2") == 4
    assert bridge.ask("signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()")


def test_a_bridge_that_is_silent_is_killed() -> None:
    with supervised(watchdog=0.2) as bridge:
        assert bridge.ask("os.environ['WATCHDOG_USEC']") == "200000"
        assert bridge.ask("int(os.environ['WATCHDOG_PID'])") == bridge.pid
        silent = bridge.pid
        bridge.do("tell('READY=1')")
        bridge.started()
        bridge.told(f"pid {silent} was silent for 0.2 s: killing it")
        bridge.told(f"pid {silent} was killed by SIGKILL")


def test_a_bridge_that_gives_signs_of_life_lives() -> None:
    with supervised(watchdog=2.0) as bridge:
        bridge.done("tell('READY=1')", "for _ in range(9): time.sleep(0.25); tell('WATCHDOG=1')")
        assert "silent" not in bridge.log()


def test_a_bridge_that_stops_may_be_silent() -> None:
    with supervised(watchdog=0.2) as bridge:
        bridge.do(
            "tell('READY=1\\nSTOPPING=1')",
            "tell('WATCHDOG=1')",
            "time.sleep(1)",
            "os._exit(0)",
        )
        assert bridge.end() == 0, bridge.log()


def test_orphans_are_reaped(bridge: Supervised) -> None:
    bridge.do(
        "if not os.fork():",
        "    os.fork() or (say(os.getpid()), os.execvp('sleep', ['sleep', '99']))",
        "    os._exit(0)",
        "os.wait()",
    )
    orphan = int(bridge.line())
    deadline = time.monotonic() + PATIENCE
    while not processes.descends(orphan, bridge.process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(orphan, signal.SIGKILL)
    await_end(orphan)
    assert bridge.ask("1 + 1") == 2


def test_our_own_manager_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.settimeout(PATIENCE)
        ear.bind(str(tmp_path / "notify"))
        with supervised(environment={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as bridge:
            for said in ("READY=1", "STATUS=well", "STOPPING=1"):
                bridge.done(f"tell('{said}')")
                assert ear.recv(99) == said.encode()


# ---- the command ----------------------------------------------------------------------------


def test_a_server(tmp_path: Path) -> None:
    path = tmp_path / "edu.sock"
    command = [*COMMAND, "serve", "model:edu"]
    with server(path, "--socket-path", str(path), command=command) as edu:
        with edu.client():
            pass
        [pid] = map(int, re.findall(r"started pid (\d+) with", edu.log()))
        os.kill(pid, signal.SIGKILL)
        assert edu.process.stdout
        assert edu.process.stdout.readline() == f"edu ready on {path}\n"
        with edu.client():
            pass
        edu.stop()
        assert edu.log().count("supervise: started pid") == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve", "--nonsense", "model:edu"], "vfio-user-bridge: unrecognized arguments"),
        (["serve", "model:edu"], "vfio-user-bridge: no socket: give --socket-path"),
        (["serve", "model:edu", "--fd", "0"], "by LISTEN_FDS, not by --fd or --group-fd"),
        (["serve", "--group-fd=9", "model:edu"], "by LISTEN_FDS, not by --fd or --group-fd"),
        (["--watchdog", "inf", "serve"], "'inf' is not a number of seconds"),
        (["--fdstore-max", "-1", "serve"], "'-1' is not a number of descriptors"),
        (["bind"], "invalid choice: 'bind'"),
    ],
)
def test_wrong_usage_is_the_end(arguments: list[str], says: str) -> None:
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 2
    assert says in done.stderr
