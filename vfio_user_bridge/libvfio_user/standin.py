# SPDX-License-Identifier: BSD-3-Clause
"""Who speaks to the library before the client does, on a connection of their own.

It says a new client's VERSION. To a library that must know what a client has said to a predecessor,
it says all of that once more: what the library knows of a client is the DMA maps and the eventfds.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from vfio_user_bridge.ancillary import receive_waiting, send_all
from vfio_user_bridge.device import Device
from vfio_user_bridge.messages import IRQ_SET_EVENTFDS, IrqSet
from vfio_user_bridge.protocol import HEADER, TYPE_COMMAND, Command, Version
from vfio_user_bridge.state import State
from vfio_user_bridge.transport import Message

from .context import Context, Listener


@contextlib.contextmanager
def standing_in(device: Device, listener: Listener) -> Iterator[StandIn]:
    """One who has connected to a new context, which isn't this one's to destroy."""
    with tempfile.TemporaryDirectory(prefix="vfio-user-bridge-") as folder:
        path = Path(folder) / "library"
        context = Context(device, path, listener)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(str(path))
            yield StandIn(context, sock)


class StandIn:
    """At the other end of *sock* is *context*."""

    def __init__(self, context: Context, sock: socket.socket) -> None:
        self.context = context
        self._socket = sock

    def greet(self, version: Message) -> tuple[bytes, list[int], OSError | None]:
        """Say this message, and give the answer, its files, and how it failed if it did."""
        refusal = None
        self._socket.sendall(_bytes(version))
        try:
            self.context.attach()
        except OSError as error:
            refusal = error
        try:
            return *receive_waiting(self._socket, 1 << 16), refusal
        except ConnectionResetError:
            return b"", [], refusal  # it was refused without a word

    def repeat(self, state: State) -> None:
        """Say all that a client has said whose state is this.

        :raise OSError: the library won't have it
        """
        # What a client can take is no matter to a library that asks it for nothing.
        version = memoryview(Version.FORMAT.pack(0, 0))
        _reply, _files, refusal = self.greet(Message(0, Command.VERSION, TYPE_COMMAND, version, []))
        if refusal:
            raise refusal
        files = {number: [fd] for number, _name, fd in state.files.named()}
        for entry in state.maps:
            self._ask(
                Command.DMA_MAP, entry.pack(), files.get(state.file_of.get(entry.address, 0), ())
            )
        for (index, subindex), (_ours, theirs) in state.relayed.items():
            if theirs.fd >= 0:
                request = IrqSet(IRQ_SET_EVENTFDS, index, subindex, 1)
                self._ask(Command.DEVICE_SET_IRQS, request.pack(), [theirs.fd])

    def _ask(self, command: Command, payload: bytes, fds: Sequence[int]) -> None:
        message = Message(0, command, TYPE_COMMAND, memoryview(payload), [])
        send_all(self._socket, _bytes(message), fds)
        self.context.run()
        reply, _files = receive_waiting(self._socket, HEADER.size)
        *_, error = HEADER.unpack(reply)
        if error:
            raise OSError(error, f"{command.name}: {os.strerror(error)}")

    def make_way(self, client: socket.socket) -> None:
        """The library hears *client* in this one's place from now on."""
        os.dup2(client.fileno(), self.context.fileno(), inheritable=False)


def _bytes(message: Message) -> bytes:
    size = HEADER.size + len(message.payload)
    return HEADER.pack(message.id, message.command, size, message.flags, 0) + message.payload
