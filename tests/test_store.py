# SPDX-License-Identifier: BSD-3-Clause
"""What a service manager is given to keep, and what is made of it when it comes back."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vfio_user_bridge import notify
from vfio_user_bridge.counters import no_rows
from vfio_user_bridge.device import Keep
from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.files import file_name
from vfio_user_bridge.handover.document import of_port, pack, to_maps, unpack
from vfio_user_bridge.handover.inherited import Left
from vfio_user_bridge.handover.journal import Journal
from vfio_user_bridge.handover.ledger import Ledger, new_ledger
from vfio_user_bridge.handover.predecessor import Killed
from vfio_user_bridge.handover.resume import resume
from vfio_user_bridge.handover.store import Held, NotKeptError, Store
from vfio_user_bridge.listener import Listener, listen
from vfio_user_bridge.messages import DmaMap
from vfio_user_bridge.models.edu import Edu
from vfio_user_bridge.notify import Manager
from vfio_user_bridge.peers import peer
from vfio_user_bridge.port import Port
from vfio_user_bridge.protocol import Capabilities, Command
from vfio_user_bridge.server import Server
from vfio_user_bridge.session import Session
from vfio_user_bridge.state import State
from vfio_user_bridge.transport import Connection

from .descriptors import memory_files
from .device_contract import open_files
from .full_mailbox import fill
from .kept_files import KeptFiles
from .running_server import PATIENCE, server
from .wire import message

#: of a document, where it doesn't matter
NOTHING = ("draining", "deadline", "clients", "since", "past", "device", "layers", "state")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(PATIENCE)
        yield sock


@pytest.mark.parametrize("path", ["", "/dev/zero", "/proc/self/status"])
def test_a_file_that_could_keep_the_manager_waiting_is_not_given_to_it(
    manager: socket.socket, path: str
) -> None:
    """A client may have one on a file system of its own, such as FUSE; here it is procfs."""
    with ExitStack() as stack:
        if path:
            fd = os.open(path, os.O_RDONLY)
            stack.callback(os.close, fd)
        else:
            (fd,) = stack.enter_context(memory_files(1))
        holdings = Held(Store(Manager({"NOTIFY_SOCKET": manager.getsockname()})))
        name = file_name(fd)
        for _ in range(2):
            assert holdings.keep(name, fd) == name
            holdings.end_round()
        given = bool(select.select([manager], [], [], 0)[0])
        assert given == (not path.startswith("/proc"))


class TestAManagerThatHasNoRoom:
    """What it couldn't be told, it is told once it can be."""

    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(notify, "_PATIENCE", 0.1)

    def test_what_it_should_keep(self, manager: socket.socket) -> None:
        fill(manager.getsockname())
        store = Store(Manager({"NOTIFY_SOCKET": manager.getsockname()}))
        with pytest.raises(NotKeptError):
            store.keep("one", 0)
        assert store.names == []
        heard(manager)
        store.keep("one", 0)
        assert heard(manager) == ["FDSTORE kept-one"]

    def test_what_it_should_close(self, manager: socket.socket) -> None:
        """Before it may keep another of that name."""
        store = Store(Manager({"NOTIFY_SOCKET": manager.getsockname()}))
        for name in ("one", "other"):
            store.keep(name, 0)
        fill(manager.getsockname())
        for name in ("one", "other"):
            store.release(name)
        with pytest.raises(NotKeptError):
            store.keep("one", 0)
        assert store.owes
        heard(manager)
        store.keep("one", 0)
        assert heard(manager) == ["FDSTOREREMOVE kept-one", "FDSTORE kept-one"]
        settling = threading.Thread(target=store.settle)
        settling.start()
        assert manager.recv(99) == b"FDSTOREREMOVE=1\nFDNAME=kept-other"
        assert manager.recv(99) == b"BARRIER=1"
        settling.join()
        assert store.names == ["one"]
        assert not store.owes

    def test_a_client_is_served_meanwhile(self, manager: socket.socket, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        environment = {"NOTIFY_SOCKET": manager.getsockname(), "FDSTORE": "64"}
        with server(path, "--socket-path", str(path), environment=environment) as edu:
            while b"STATUS=" not in manager.recv(99):
                pass
            fill(manager.getsockname())
            with edu.client():
                assert "a crash would lose its client" in edu.log()
                while "FDSTORE kept-client-1-edu" not in heard(manager):
                    assert select.select([manager], [], [], PATIENCE)[0]


def heard(manager: socket.socket) -> list[str]:
    """What waits there of what is kept and closed."""
    told = []
    while select.select([manager], [], [], 0)[0]:
        what, *name = manager.recv(99).decode().split("\n")
        if what.startswith("FDSTORE"):
            told.append(f"{what.removesuffix('=1')} {name[0].removeprefix('FDNAME=')}")
    return told


class Poor(Edu):
    """It can't be written down, once."""

    failed = False

    def save(self, keep: Keep) -> dict[str, Any]:
        if not self.failed:
            self.failed = True
            keep("something", 0)
            raise OSError(errno.EMFILE, "no descriptors")
        return super().save(keep)


def test_a_client_that_can_not_be_written_down_is_not_there(tmp_path: Path) -> None:
    """The next one is served, and nothing is kept of the first."""
    with ExitStack() as stack:
        port = Port(Poor(), listen(tmp_path / "socket", 0o600))
        stack.callback(port.listener.close)
        stack.callback(port.close)
        store = Store(Manager({}))
        port.ledger = ledger = new_ledger(port, store, None)
        stack.callback(ledger.journal.close)
        before = store.names

        def admit() -> None:
            sock, theirs = map(stack.enter_context, socket.socketpair())
            connection = Connection(sock)
            port.admit(connection, peer(theirs), Session(connection, port.device, "a client"))

        with pytest.raises(OSError, match="no descriptors"):
            admit()
        assert port.over.is_set()
        assert store.names == before
        behind = port.behind
        admit()
        assert not port.over.is_set()
        assert (behind, port.behind) == (True, False)
        assert store.names == [*before, "client-2-edu"]


def test_killed_over_its_version_a_client_is_a_new_one(tmp_path: Path) -> None:
    """Its state is written down, and its predecessor has looked at the message."""
    with ExitStack() as stack:
        sock, theirs = map(stack.enter_context, socket.socketpair())
        port = Port(Edu(), listen(tmp_path / "socket", 0o600))
        stack.callback(port.listener.close)
        port.ledger = ledger = new_ledger(port, Store(Manager({})), None)
        stack.callback(ledger.journal.close)
        connection = Connection(sock, books=ledger.journal)
        session = Session(connection, port.device, "a client")
        port.admit(connection, peer(sock), session)
        connection.start()
        theirs.sendall(message(Command.VERSION, bytes(4)))
        connection.receive()
        connection.begin()
        session.state = State(Capabilities())
        ledger.write()

        document = unpack(ledger.journal.document)
        left = Left(document, [], no_rows(), ledger.journal, lambda _name: sock.dup().detach())
        another = Port(Edu(), port.listener)
        for each in (port, another):
            stack.callback(each.device.close)
        found = resume(another, left, Session.engine)
        assert found
        client, state = found
        client.close()
        assert document["state"]
        assert state is None


class Unsuccessful(Edu):
    def succeed(self) -> None:
        raise OSError(errno.EMFILE, "no descriptors")


@pytest.fixture
def left(tmp_path: Path) -> Iterator[tuple[Left, Listener]]:
    """By a bridge whose client has a map; and where it listened."""
    with ExitStack() as stack:
        sock, _theirs = map(stack.enter_context, socket.socketpair())
        (ram,) = stack.enter_context(memory_files(1, 4096))
        kept = stack.enter_context(closing(KeptFiles()))
        port = Port(Edu(), listen(tmp_path / "socket", 0o600))
        stack.callback(port.listener.close)
        stack.callback(port.close)
        session = Session(Connection(sock), port.device, "a client")
        port.admit(Connection(sock), peer(sock), session)
        session.state = State(Capabilities())
        stack.callback(session.state.close)
        session.state.add_map(DmaMap(3, 0, 0, 4096), session.state.add_file(ram))
        document = of_port(port, kept.keep, whole=True)
        maps = to_maps(document["maps"])
        yield Left(document, maps, no_rows(), None, kept.take), port.listener


def test_one_that_can_not_go_on_leaves_nothing_open(left: tuple[Left, Listener]) -> None:
    """A guest's memory least of all."""
    with closing(Server()) as server:
        before = open_files()
        with pytest.raises(OSError, match="no descriptors"):
            server.add(Unsuccessful(), Listener(left[1].socket.dup()), left=left[0])
        assert open_files() == before


def test_once_its_predecessor_is_gone_it_goes_on_all_the_same(
    left: tuple[Left, Listener], caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Server()) as server:
        running = replace(left[0], runs=True)
        server.add(Unsuccessful(), Listener(left[1].socket.dup()), left=running)
        server.succeed()
        assert "no descriptors; a crash would lose its client" in caplog.text
        (port,) = server.ports()
        assert port.session
        assert port.session.state
        assert len(list(port.session.state.maps)) == 1
        port.session.state.close()  # its thread would


@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_a_journal_of_no_use_is_closed(content: bytes) -> None:
    journal = Journal.create(1)
    journal.document = content
    killed = Killed({"journal-a": os.dup(journal.fd), "journal-b": os.open("/dev/null", os.O_RDWR)})
    journal.close()
    assert not killed.left
    killed.is_over()


@pytest.mark.parametrize("first", ["a", "b"])
def test_who_has_a_client_goes_on_first(first: str, caplog: pytest.LogCaptureFixture) -> None:
    """Only then is the container there that the others of its IOMMU group are opened in.

    One that can't go on leaves nothing open.
    """
    files, order = {}, []
    for name in sorted("ab", key=lambda name: name != first):
        journal = Journal.create(1)
        client = "client-1-b" if name == "b" else None
        journal.document = pack({**dict.fromkeys(NOTHING), "name": name, "client": client})
        files[f"journal-{name}"] = os.dup(journal.fd)
        journal.close()

    def offer(name: str, left: Left) -> None:
        order.append(name)
        if not left.document["client"]:
            raise BridgeError("it can't go on")
        assert left.journal
        left.journal.close()

    killed = Killed(files)
    assert killed.resume(offer) == ["b"]
    assert order == ["b", "a"]
    killed.is_over()
    caplog.clear()  # its error has all this


def test_who_goes_on_and_can_not_write_that_down_tries_again(left: tuple[Left, Listener]) -> None:
    with closing(Server(store=Store(Manager({})))) as server:
        server.add(Poor(), Listener(left[1].socket.dup()), left=left[0])
        (port,) = server.ports()
        behind = port.behind
        port.catch_up()
        assert (behind, port.behind) == (True, False)
        assert port.session
        assert port.session.state
        port.session.state.close()
        assert isinstance(port.ledger, Ledger)
    port.ledger.journal.close()
