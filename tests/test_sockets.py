# SPDX-License-Identifier: BSD-3-Clause
"""Which device goes on which of the sockets that were passed in."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vfio_user_bridge.errors import UsageError
from vfio_user_bridge.listener import Listener
from vfio_user_bridge.sockets import match_sockets

NIC = "0000:01:10.1"

Make = Callable[..., list[Listener]]


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[Make]:
    """Makes sockets in files of these names; one of no name is in the abstract namespace."""
    with ExitStack() as stack:

        def make(*names: str) -> list[Listener]:
            found = []
            for name in names:
                sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                sock.bind(str(tmp_path / name) if name else "")
                found.append(Listener(sock))
            return found

        yield make


def test_by_their_files(listeners: Make) -> None:
    edu, nic = listeners("edu.sock", f"{NIC}.sock")
    assert match_sockets([edu, nic], [NIC, "edu"]) == {NIC: nic, "edu": edu}


@pytest.mark.parametrize("names", [("a.sock", "b.sock"), ("", ""), ("a.sock", "")])
def test_else_by_order(listeners: Make, names: tuple[str, str]) -> None:
    first, second = listeners(*names)
    assert match_sockets([first, second], [NIC, "edu"]) == {NIC: first, "edu": second}


def test_one_socket_may_be_called_anything(listeners: Make) -> None:
    (only,) = listeners("nic.sock")
    assert match_sockets([only], [NIC]) == {NIC: only}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["a"], "1 sockets were passed in for 2 devices"),
        (["a", "b", "c"], "3 sockets were passed in for 2 devices"),
        (["edu.sock", "b"], f"no socket was passed in that is called {NIC}.sock, and others are"),
    ],
)
def test_those_that_do_not_fit(listeners: Make, files: list[str], says: str) -> None:
    with pytest.raises(UsageError) as failure:
        match_sockets(listeners(*files), [NIC, "edu"])
    assert str(failure.value).startswith(says)
