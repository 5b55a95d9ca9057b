# SPDX-License-Identifier: BSD-3-Clause
"""Target: a whole `session.Session`, in which a client says anything to model:edu.

Property: each message gets its reply, unless it wants none, or is one for which the client is put
out. What is refused changes neither the device nor the client's maps. Once the client has gone,
nothing of it is left, the device is as it was made, and the next client is served.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

from integration.fuzz import fed
from integration.fuzz.files import EVENTFD, opened
from integration.fuzz.leaks import Leaks, next_descriptor
from integration.fuzz.pieces import Piece, unpack
from tests.client import QEMU_CAPABILITIES, version_data
from tests.wire import message, region, u16, u32
from vfio_user_bridge import eventfd
from vfio_user_bridge.device import PciRegion
from vfio_user_bridge.limits import Limits
from vfio_user_bridge.models.config import CONFIG_SIZE
from vfio_user_bridge.models.edu import IDENTIFICATION, Edu, Register
from vfio_user_bridge.protocol import (
    FLAG_ERROR,
    FLAG_NO_REPLY,
    HEADER,
    TYPE_COMMAND,
    TYPE_MASK,
    TYPE_REPLY,
    Command,
    Header,
)
from vfio_user_bridge.session import Session

#: Little at once, for the model takes its time over a BAR of a million bytes.
LIMITS = Limits(transfer=4096, mapped=1 << 30)
VERSION = Piece(message(Command.VERSION, u16(0, 0) + version_data(QEMU_CAPABILITIES)))
IDENTIFY = region(Register.IDENTIFICATION, PciRegion.BAR0, 4)
NEXT_CLIENT = [Piece(message(Command.REGION_READ, IDENTIFY))]

#: region, offset, size
STATE = (
    *((PciRegion.BAR0, register, 4) for register in (Register.LIVENESS, Register.FACTORIAL)),
    *((PciRegion.BAR0, register, 4) for register in (Register.STATUS, Register.IRQ_STATUS)),
    (PciRegion.BAR0, Register.DMA_SOURCE, 4 * 8),
    (PciRegion.CONFIG, 0, CONFIG_SIZE),
)
DeviceState = tuple[bytes, ...]


@contextmanager
def target() -> Iterator[Callable[[bytes], None]]:
    leaks = Leaks()
    with opened() as files, closing(Edu(LIMITS)) as edu, formatted_logs():
        new = device_state(edu)

        def run(data: bytes) -> None:
            while eventfd.take(files[EVENTFD]):
                pass  # what an earlier input has left there
            with leaks.none():
                Client(edu, files, unpack(data)).talk()
                assert device_state(edu) == new, "the device isn't as it was made"
                following = Client(edu, files, NEXT_CLIENT)
                following.talk()
                assert following.payload == IDENTIFY + u32(IDENTIFICATION)

        yield run


class Client:
    """Sends the messages *script*, each after the reply to the one before, and hangs up.

    If that doesn't begin with VERSION, it says QEMU's first. *payload* is that of the last reply.
    """

    def __init__(self, edu: Edu, files: Sequence[int], script: Sequence[Piece]) -> None:
        self.payload = b""
        self._edu = edu
        self._files = files
        self._messages = [with_its_size(piece) for piece in script]
        if not self._messages or command(self._messages[0]) != Command.VERSION:
            self._messages.insert(0, VERSION)

    def talk(self) -> None:
        dealt_with = []  # reading on is what the session does after that

        def story(sock: socket.socket) -> Iterator[bool]:
            now: tuple[object, ...] = ()
            refusals = 0
            for request in self._messages:
                fed.send(sock, request, self._files)
                yield True
                dealt_with.append(request)
                state = self._session.state
                assert state
                refused, refusals = state.counters.refused > refusals, state.counters.refused
                self._check_reply(sock, request, refused=refused)
                before = now
                now = device_state(self._edu), list(state.maps), next_descriptor()
                assert now == before or not refused, f"refused, and yet done: {request}"

        with fed.connection(story, LIMITS) as connection:
            self._session = Session(connection, self._edu, "a client", LIMITS)
            self._session.run()
        fatal = (at for at, each in enumerate(self._messages) if is_fatal(each))
        expected = self._messages[: next(fatal, None)] if self._session.state else []
        assert dealt_with == expected, "put out for what others are not, or the other way round"

    def _check_reply(self, sock: socket.socket, request: Piece, *, refused: bool) -> None:
        """There is one if there has to be, and it is the request's."""
        try:
            reply = sock.recv(2 * LIMITS.transfer, socket.MSG_DONTWAIT)
        except BlockingIOError:
            reply = b""
        asked = Header.unpack(request.data)
        assert bool(reply) != bool(asked.flags & FLAG_NO_REPLY)
        if reply:
            header, self.payload = Header.unpack(reply), reply[HEADER.size :]
            assert (header.id, header.command) == (asked.id, asked.command)
            assert header.size == len(reply)
            assert not (refused and self.payload)
            assert header.flags == TYPE_REPLY | FLAG_ERROR * refused
            assert bool(header.error) == refused


def with_its_size(piece: Piece) -> Piece:
    """One whole message of it: other sizes are what the target `transport` is for."""
    data = piece.data.ljust(HEADER.size, b"\0")
    return Piece(data[:4] + u32(len(data)) + data[8:], piece.files)


def command(message: Piece) -> int:
    return Header.unpack(message.data).command


def is_fatal(message: Piece) -> bool:
    """Whether a client is put out for this. What comes with an access is never looked at."""
    header = Header.unpack(message.data)
    access = header.command in (Command.REGION_READ, Command.REGION_WRITE)
    reply = header.flags & TYPE_MASK != TYPE_COMMAND
    return reply or (len(message.files) > LIMITS.fds and not access)


def device_state(edu: Edu) -> DeviceState:
    """What reading, which changes nothing, tells of it."""
    return tuple(edu.region_read(*place) for place in STATE)


@contextmanager
def formatted_logs() -> Iterator[None]:
    """Every line that the bridge would log is made, and thrown away."""
    logger = logging.getLogger("vfio_user_bridge")
    handler = Formatting()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield
    logger.removeHandler(handler)
    logger.setLevel(level)
    logger.propagate = propagate


class Formatting(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()
