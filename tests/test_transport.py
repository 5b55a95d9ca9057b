# SPDX-License-Identifier: BSD-3-Clause
"""Whole messages over real socket pairs: how long they may take, and what is no message at all."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from vfio_user_bridge.limits import Limits
from vfio_user_bridge.protocol import ProtocolError
from vfio_user_bridge.transport import Connection, PeerGoneError

from .descriptors import inodes, memory_files, open_descriptors
from .wire import dma_map, message, region, u16, u32

STALL = 0.05
RESET, DMA_MAP, READ, WRITE = 13, 2, 9, 10


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    """A connection that waits `STALL` seconds at most, and its peer."""
    ours, theirs = socket.socketpair()
    connection = Connection(ours, Limits(stall=STALL))
    yield connection, theirs
    theirs.close()
    connection.close()


Pair = tuple[Connection, socket.socket]


# ---- Whole messages -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 16, 19, 20, 21, 48, 65520])
def test_a_message_arrives_as_it_was_sent(pair: Pair, size: int) -> None:
    connection, peer = pair
    payload = os.urandom(size)
    peer.sendall(message(0x1234, payload, number=0xABCD, flags=0x10))
    got = connection.receive()
    assert (got.command, got.id, got.flags) == (0x1234, 0xABCD, 0x10)
    assert got.payload == payload
    assert got.fds == []


def test_several_messages_in_one_send_are_several(pair: Pair) -> None:
    connection, peer = pair
    payloads = [bytes([n]) * size for n, size in enumerate([0, 0, 0, 16, 20, 24, 0, 100, 1, 16])]
    peer.sendall(b"".join(message(n, payload) for n, payload in enumerate(payloads)))
    for number, payload in enumerate(payloads):
        got = connection.receive()
        assert (got.command, bytes(got.payload)) == (number, payload)


def test_a_message_may_come_byte_by_byte(pair: Pair) -> None:
    connection, peer = pair
    stream = b"".join(message(n, bytes([n]) * 30) for n in range(3))

    def trickle() -> None:
        for at in range(len(stream)):
            peer.sendall(stream[at : at + 1])

    sender = threading.Thread(target=trickle)
    sender.start()
    got = [(m.command, bytes(m.payload)) for m in (connection.receive() for _ in range(3))]
    sender.join()
    assert got == [(n, bytes([n]) * 30) for n in range(3)]


def test_a_large_message_arrives_when_it_is_allowed(pair: Pair) -> None:
    connection, peer = pair
    connection.max_size = 1 << 20
    payload = os.urandom((1 << 20) - 16)
    sender = threading.Thread(target=peer.sendall, args=(message(WRITE, payload),))
    sender.start()
    assert connection.receive().payload == payload
    sender.join()
    peer.sendall(message(RESET))
    assert connection.receive().command == RESET


@pytest.mark.parametrize("size", [0, 1, 15])
def test_a_message_smaller_than_its_header_is_none(pair: Pair, size: int) -> None:
    connection, peer = pair
    peer.sendall(u16(1, RESET) + u32(size, 0, 0))
    with pytest.raises(ProtocolError, match=f"a message of {size} bytes"):
        connection.receive()


@pytest.mark.parametrize("size", [(1 << 16) + 1, 0xFFFFFFFF])
def test_a_message_larger_than_allowed_is_refused_by_its_header(pair: Pair, size: int) -> None:
    connection, peer = pair
    peer.sendall(u16(1, WRITE) + u32(size, 0, 0))
    with pytest.raises(ProtocolError, match=f"a message of {size} bytes; 65536 are allowed"):
        connection.receive()


# ---- Peers that go --------------------------------------------------------------------------


def test_a_peer_may_go_between_messages(pair: Pair) -> None:
    connection, peer = pair
    peer.sendall(message(RESET))
    peer.close()
    assert connection.receive().command == RESET
    with pytest.raises(PeerGoneError, match=r"it hung up$"):
        connection.receive()


@pytest.mark.parametrize("cut", [1, 15, 16, 35, 36, 47])
def test_a_peer_that_goes_in_mid_message_is_gone(pair: Pair, cut: int) -> None:
    connection, peer = pair
    peer.sendall(message(DMA_MAP, dma_map(0, 4096))[:cut])
    peer.close()
    with pytest.raises(PeerGoneError, match="in mid-message"):
        connection.receive()


# ---- Several at once ------------------------------------------------------------------------


def test_replies_to_messages_that_came_together_leave_together(pair: Pair) -> None:
    connection, peer = pair
    peer.sendall(message(READ, region(0, 7, 4)) * 5)
    for _ in range(5):
        connection.receive()
        connection.send(b"reply")
    assert peer.recv(100, socket.MSG_DONTWAIT) == b"reply" * 5


@pytest.mark.parametrize("behind", [b"", message(READ, region(0, 7, 4))[:20]])
def test_a_reply_does_not_wait_for_what_has_not_come(pair: Pair, behind: bytes) -> None:
    connection, peer = pair
    peer.sendall(message(READ, region(0, 7, 4)) * 2 + behind)
    for _ in range(2):
        connection.receive()
        connection.send(b"reply")
    peer.shutdown(socket.SHUT_WR)
    with pytest.raises(PeerGoneError):
        connection.receive()
    assert peer.recv(100, socket.MSG_DONTWAIT) == b"reply" * 2


def test_descriptors_leave_with_the_reply_that_they_belong_to(pair: Pair) -> None:
    connection, peer = pair
    peer.sendall(message(READ, region(0, 7, 4)) * 3)
    with memory_files(1) as files:
        for reply, fds in ((b"before", []), (b"with", files), (b"behind", [])):
            connection.receive()
            connection.send(reply, fds)
        for expected, sent in ((b"before", []), (b"with", files), (b"behind", [])):
            reply, fds, _, _ = socket.recv_fds(peer, len(expected), 2)
            assert (reply, inodes(fds)) == (expected, inodes(sent))
            for fd in fds:
                os.close(fd)


# ---- Before it sleeps -----------------------------------------------------------------------


@pytest.mark.parametrize(("patience", "looks"), [(5, True), (0, False)])
def test_a_connection_looks_for_the_next_message(
    patience: float, looks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = threading.Event()
    monkeypatch.setattr(os, "sched_yield", looked.set)
    ours, peer = socket.socketpair()
    with closing(Connection(ours, patience=patience)) as connection, peer:
        reader = threading.Thread(target=lambda: [connection.receive() for _ in range(3)])
        peer.sendall(message(RESET))
        reader.start()
        assert looked.wait(5) if looks else not looked.wait(0.1)
        peer.sendall(message(RESET))
        peer.sendall(message(RESET))
        reader.join(5)
        assert not reader.is_alive()


def test_a_silent_peer_takes_no_time() -> None:
    patience, silence = 0.01, 0.5
    ours, peer = socket.socketpair()
    with closing(Connection(ours, patience=patience)) as connection, peer:
        peer.sendall(message(RESET))
        connection.receive()
        threading.Timer(silence, peer.sendall, [message(RESET)]).start()
        begun = time.thread_time()
        connection.receive()
        assert time.thread_time() - begun < silence / 4


def test_a_peer_that_leaves_replies_unread_is_gone(pair: Pair) -> None:
    connection, peer = pair
    connection.send(message(RESET))
    peer.close()
    with pytest.raises(PeerGoneError):
        connection.receive()
    with pytest.raises(PeerGoneError, match="Broken pipe"):
        connection.send(message(RESET))


def test_who_has_hung_up_is_known(pair: Pair) -> None:
    connection, peer = pair
    assert not connection.hung_up()
    peer.sendall(message(RESET))
    peer.shutdown(socket.SHUT_WR)
    assert connection.hung_up()
    connection.close()
    assert connection.hung_up()


def test_another_thread_can_end_the_conversation(pair: Pair) -> None:
    connection, _peer = pair
    ender = threading.Thread(target=connection.shut_down)
    ender.start()
    with pytest.raises(PeerGoneError):
        connection.receive()
    ender.join()
    with pytest.raises(PeerGoneError):
        connection.send(message(RESET))


# ---- Peers that stall -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "before", [b"", message(READ, region(0, 7, 4))], ids=["alone", "behind another"]
)
@pytest.mark.parametrize("cut", [1, 4, 15, 16, 35, 36, 47])
def test_half_a_message_times_out(pair: Pair, before: bytes, cut: int) -> None:
    connection, peer = pair
    peer.sendall(before + message(DMA_MAP, dma_map(0, 4096))[:cut])
    if before:
        assert connection.receive().command == READ
    rescue = threading.Timer(40 * STALL, connection.shut_down)
    rescue.start()
    with pytest.raises(PeerGoneError, match="took too long"):
        connection.receive()
    rescue.cancel()
    rescue.join()


def test_a_message_that_trickles_for_ever_times_out(pair: Pair) -> None:
    connection, peer = pair
    over = threading.Event()

    def trickle() -> None:
        data = iter(message(WRITE, bytes(60_000)))
        while not over.wait(STALL / 5):
            peer.send(bytes([next(data)]))

    sender = threading.Thread(target=trickle)
    sender.start()
    begun = time.monotonic()
    try:
        with pytest.raises(PeerGoneError, match="took too long"):
            connection.receive()
    finally:
        over.set()
        sender.join()
    assert time.monotonic() - begun < 40 * STALL


def test_silence_is_no_stall_unless_in_a_hurry(pair: Pair) -> None:
    connection, peer = pair
    connection.hurry(True)
    with pytest.raises(PeerGoneError, match="nothing to say"):
        connection.receive()
    connection.hurry(False)
    late = threading.Timer(3 * STALL, peer.sendall, (message(RESET),))
    late.start()
    assert connection.receive().command == RESET
    late.join()


def test_a_slow_message_does_not_make_the_next_one_urgent() -> None:
    ours, theirs = socket.socketpair()
    with closing(Connection(ours, Limits(fds=1, stall=60))) as connection, theirs:
        data = message(DMA_MAP, dma_map(0, 4096))
        theirs.sendall(data[:40])
        rest = threading.Timer(0.05, theirs.sendall, (data[40:],))
        rest.start()
        assert connection.receive().command == DMA_MAP
        rest.join()
        timeout = ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)
        assert timeout == bytes(16)  # none


def flood(connection: Connection, fds: list[int]) -> None:
    for _ in range(10_000):
        connection.send(message(READ, bytes(1000)), fds)


@pytest.mark.parametrize("files", [0, 1])
def test_a_peer_that_never_reads_is_gone_in_bounded_time(pair: Pair, files: int) -> None:
    connection, _peer = pair
    begun = time.monotonic()
    with memory_files(files) as fds, pytest.raises(PeerGoneError, match="doesn't read"):
        flood(connection, fds)
    assert time.monotonic() - begun < 100 * STALL


# ---- Sending --------------------------------------------------------------------------------


def test_a_reply_carries_its_descriptors_once_however_large_it_is() -> None:
    ours, peer = socket.socketpair()
    data = message(READ, os.urandom(1 << 20))
    received, fds = bytearray(), list[int]()

    def read() -> None:
        while len(received) < len(data):
            piece, more, _flags, _address = socket.recv_fds(peer, 1 << 16, 16)
            received.extend(piece)
            fds.extend(more)

    reader = threading.Thread(target=read)
    reader.start()
    with closing(Connection(ours)) as connection, peer, memory_files(2) as files:
        connection.send(data, files)
        reader.join()
        assert received == data
        assert inodes(fds) == inodes(files)
    for fd in fds:
        os.close(fd)


def test_a_descriptor_of_ours_that_is_not_open_is_not_the_peers_fault(pair: Pair) -> None:
    connection, _peer = pair
    with memory_files(1) as (fd,):
        pass
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        connection.send(message(RESET), [fd])
    assert caught.value.errno == errno.EBADF


def test_close_closes_the_socket_and_nothing_else() -> None:
    ours, theirs = socket.socketpair()
    before = open_descriptors()
    Connection(ours).close()
    assert len(open_descriptors()) == len(before) - 1
    theirs.close()
