# SPDX-License-Identifier: BSD-3-Clause
"""One client's conversation, answered by libvfio-user instead of `requests`.

The library accepts clients from a socket of its own, but ours has accepted this one already. So a
stand-in connects to the library and says the client's VERSION; what the library answers goes to the
client, and the client's socket takes the stand-in's place. From then on the library reads from it
and answers. A client that is silent, or one too many, never gets that far. Where a predecessor has
served the client, the stand-in says all that the client has said, and nobody is answered.

Callbacks bring region accesses, resets and masks to the device. There is none for eventfds, and the
one for DMA maps has neither the file nor a way to refuse. So those requests are read first, while
they wait in the socket (MSG_PEEK), and the device does them before the library answers; if the
device refuses, we answer in the library's place. The device gets eventfds of ours, whose signals go
to vfu_irq_trigger.

One thread does everything: the library isn't thread-safe.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from vfio_user_bridge.ancillary import receive_waiting
from vfio_user_bridge.device import PciIrq
from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.files import Files
from vfio_user_bridge.messages import IRQ_SET_EVENTFDS, IRQ_SET_OFF, DmaMap, IrqSet, IrqSetFlags
from vfio_user_bridge.protocol import (
    HEADER,
    TYPE_COMMAND,
    TYPE_MASK,
    Capabilities,
    Command,
    ProtocolError,
)
from vfio_user_bridge.requests import Requests
from vfio_user_bridge.session import Session
from vfio_user_bridge.state import State
from vfio_user_bridge.transport import SO_PEEK_OFF, Message, PeerGoneError

from .context import IRQS, Context
from .relay import Relay
from .standin import standing_in

log = logging.getLogger(__name__)

#: the longest message that must be known whole: SET_IRQS and DMA_MAP; bytes of it
_PEEK = HEADER.size + DmaMap.FORMAT.size
#: the shortest of them
_LEAST = HEADER.size + IrqSet.FORMAT.size
#: more than this may not be in the socket at once, and the library reads but once; bytes
_LARGE = 1 << 16


class LibrarySession(Session):
    """Serves *device* to the client on *connection*, through the library, until it goes."""

    engine = "libvfio-user"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._requests: Requests  # once there is a state
        self._context: Context | None = None
        self._relayed = self.state.relayed if self.state else {}
        self._relay = Relay(self._trigger, self._relayed)
        self._by_eventfd = False  # what the latest SET_IRQS says is said by eventfds
        self._command = 0  # of the message that the library has
        self._accepted = False  # the library has, the DMA map that it was given
        self._preparations = {
            Command.DMA_MAP: self._prepare_map,
            Command.DEVICE_SET_IRQS: self._prepare_irqs,
        }
        if self.state:
            self._tell_anew(self.state)

    # ---- What is heard from the library -----------------------------------------------------

    def written(self) -> None:
        self._relay.pass_on()  # what a write raises is there before its reply is

    def masked(self, start: int, count: int, mask: bool) -> None:
        if self._by_eventfd:
            return  # the device has that; the library takes it for a mask of this moment
        action = IrqSetFlags.ACTION_MASK if mask else IrqSetFlags.ACTION_UNMASK
        request = IrqSet(action | IrqSetFlags.DATA_NONE, PciIrq.INTX, start, count)
        self._device.set_irqs(request, ())
        self._relay.pass_on()

    def mapped(self) -> None:
        self._accepted = True

    def unmapped(self, iova: int) -> None:
        # At the end of a connection all go; then it is `_clean_up` that takes them from the device.
        if self._command == Command.DMA_UNMAP and self.state:
            for entry in self.state.maps.overlapping(iova, 1):
                self._device.dma_unmap(entry)
                self.state.remove_map(entry)

    def _trigger(self, subindex: int) -> None:
        assert self._context
        try:
            self._context.trigger(subindex)
        except OSError as error:
            # The client has taken its eventfd back, or has yet to read a full one.
            if error.errno not in (errno.ENOENT, errno.EAGAIN):
                log.error("%s: %s", self._device.name, error)

    # ---- The conversation -------------------------------------------------------------------

    def _negotiate(self) -> State:
        connection = self._connection
        connection.hurry(True)
        version = connection.receive()
        with self._turn:
            connection.begin()
        version.close_fds()
        with standing_in(self._device, self) as stand_in:
            self._context = stand_in.context
            reply, fds, refusal = stand_in.greet(version)
            if not refusal:
                stand_in.make_way(connection.socket)
        capabilities = Capabilities(max_dma_maps=self._device.max_dma_maps)
        files = Files(self._limits.files)
        state = State(
            capabilities,
            counters=self.counters,
            files=files,
            relayed=self._relayed,
            ledger=self._ledger,
        )
        if not refusal:
            self.state = state
            self.can_be_resumed = not fds
            state.write_down()
        try:
            connection.send(reply, fds)
            connection.settle()  # what follows is the library's to read
        finally:
            for fd in fds:
                os.close(fd)
        if refusal:
            raise ProtocolError(f"libvfio-user refuses it: {refusal.strerror}")
        self._are_agreed(state)
        self._count(Command.VERSION)
        return state

    def _are_agreed(self, state: State) -> None:
        super()._are_agreed(state)
        # Still, or again: the library may wait for the rest of a message, but not forever.
        self._connection.hurry(True)

    def _tell_anew(self, state: State) -> None:
        """A new library of a client whose state is this.

        :raise BridgeError: it won't have it
        """
        try:
            with standing_in(self._device, self) as stand_in:
                self._context = stand_in.context
                stand_in.repeat(state)
                stand_in.make_way(self._connection.socket)
        except OSError as error:
            state.files.close()
            self._let_go()
            raise BridgeError(
                f"{self._device.name}: libvfio-user can't go on with its client: {error.strerror}"
            ) from None

    def _go_on(self, state: State) -> None:
        self._are_agreed(state)
        self._connection.send_placed()
        journal = self._ledger and self._ledger.journal
        if journal and (journal.begun or journal.lost):
            raise ProtocolError("its bridge was killed over a message that is lost with it")

    def _serve(self, state: State) -> None:
        self._requests = Requests(self._device, state)
        client, relay = self._connection.socket.fileno(), self._relay.fileno()
        poll = select.poll()
        poll.register(client, select.POLLIN)
        poll.register(relay, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                with self._turn:
                    if fd == relay:
                        self._relay.pass_on()
                    else:
                        self._answer(state)

    def _answer(self, state: State) -> None:
        """Have the library answer the message that waits."""
        try:
            head = self._connection.socket.recv(_PEEK, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError as error:
            raise PeerGoneError(error.strerror) from None
        if len(head) < HEADER.size:
            raise PeerGoneError("it hung up" + (" in mid-message" if head else ""))
        command = HEADER.unpack_from(head)[1]
        self._connection.now = time.perf_counter_ns()
        self._look_again()
        journal = self._ledger and self._ledger.journal
        if journal:  # the library takes it out of the socket, and nobody knows how far it has come
            journal.take()
            journal.begin(0)
        try:
            self._answer_command(state, head)
        finally:
            if command in self._requests.handlers:
                self._count(command)
        if state.changed or self._device.volatile:
            state.write_down_or_later()
        if journal:
            journal.consumed()

    def _answer_command(self, state: State, head: bytes) -> None:
        _id, command, size, flags, _error = HEADER.unpack_from(head)
        if command == Command.REGION_WRITE and size > _LARGE:
            self._answer_ourselves()
            return
        prepare = self._preparations.get(command)
        if not prepare or size < _LEAST or flags & TYPE_MASK != TYPE_COMMAND:
            self._run(command)  # none of those, or none at all, as the library says itself
            return
        message = self._peek(head)
        try:
            undo = prepare(state, message)
        except OSError as error:
            self._answer_ourselves(error)
        else:
            self._run(command)
            undo()
        finally:
            message.close_fds()

    def _answer_ourselves(self, refusal: OSError | None = None) -> None:
        """Take the message away from the library, and do what it says unless there is a refusal."""
        message = self._connection.receive()
        self._connection.begin()
        try:
            if refusal:
                raise refusal
            self._send(message, self._requests.handlers[message.command](message))
        except OSError as error:
            self._refuse(message, error)
        finally:
            message.close_fds()
        self._connection.settle()

    def _peek(self, head: bytes) -> Message:
        """The message that waits and duplicates of its files, which are the caller's to close."""
        data, fds = receive_waiting(self._connection.socket, _PEEK, socket.MSG_PEEK)
        self._look_again()
        id_, command, size, flags, _error = HEADER.unpack_from(head)
        message = Message(id_, command, flags, memoryview(data)[HEADER.size : size], fds)
        if len(data) < min(size, _PEEK):
            message.close_fds()
            raise ProtocolError("a message in pieces, which libvfio-user can't take either")
        return message

    def _look_again(self) -> None:
        """Whoever looks next, of the library or a successor, begins at the head of the queue."""
        if self._ledger:
            self._connection.socket.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)

    def _run(self, command: int) -> None:
        """Have the library read one message and answer it."""
        assert self._context
        self._command = command
        try:
            self._context.run()
        except OSError as error:
            gone = error.errno == errno.ENOTCONN
            raise PeerGoneError("it hung up" if gone else error.strerror) from None
        finally:
            self._command = 0

    def _prepare_map(self, state: State, message: Message) -> Callable[[], None]:
        """Map for the device what the library will accept. Gives what is to be done afterwards."""
        request = DmaMap.unpack(message.payload)
        if state.maps.overlapping(request.address, request.size):
            return _nothing  # the library knows that map too, and what it thinks of another
        self._requests.handlers[Command.DMA_MAP](message)
        self._accepted = False

        def undo() -> None:
            if not self._accepted:
                self._device.dma_unmap(request)
                state.remove_map(request)

        return undo

    def _prepare_irqs(self, _state: State, message: Message) -> Callable[[], None]:
        """Give the device our eventfds in place of the client's, before the client hears of it.

        Those that mask and unmask go to the device as they are: the library forgets them. All else
        that SET_IRQS can say is between the library and the client's eventfds, but for `masked`.
        """
        request = IrqSet.unpack(message.payload)
        self._by_eventfd = bool(request.flags & IrqSetFlags.DATA_EVENTFD)
        off = request.flags == IRQ_SET_OFF and not request.count
        if request.index not in IRQS or not (self._by_eventfd or off):
            return _nothing
        if request.start + len(message.fds) > self._device.irq_info(request.index).count:
            return _nothing  # the library refuses it
        set_irqs = self._requests.handlers[Command.DEVICE_SET_IRQS]
        if request.flags == IRQ_SET_EVENTFDS:
            self._relay.stand_in(request, message, set_irqs)
        else:
            set_irqs(message)
        if off:
            self._relay.drop(request.index)
        return _nothing

    def _clean_up(self, *, reset: bool) -> None:
        try:
            super()._clean_up(reset=reset)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._relay.close()
        if self._context:
            self._context.destroy()


def _nothing() -> None:
    return
