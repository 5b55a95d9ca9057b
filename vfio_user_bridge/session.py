# SPDX-License-Identifier: BSD-3-Clause
"""One client's conversation: negotiate, answer in order, clean up behind it."""

from __future__ import annotations

import errno
import logging
import time
from contextlib import ExitStack, suppress
from dataclasses import replace

from .device import Device
from .errors import DeviceError
from .limits import DEFAULTS, Limits
from .messages import DmaMap
from .protocol import (
    FLAG_ERROR,
    FLAG_NO_REPLY,
    HEADER,
    PAYLOAD_OVERHEAD,
    TYPE_COMMAND,
    TYPE_MASK,
    TYPE_REPLY,
    Command,
    ProtocolError,
    Version,
    refuse,
)
from .requests import Requests, State
from .transport import Connection, Message, PeerGoneError

log = logging.getLogger(__name__)

MAJOR = 0
MINOR = 1
#: what other replies may wait for
_QUICK = frozenset((int(Command.REGION_READ), int(Command.REGION_WRITE)))


class Session:
    """Serves *device* to the client on *connection* until it goes.

    :param peer: who it is, for the log
    """

    def __init__(
        self, connection: Connection, device: Device, peer: str, limits: Limits = DEFAULTS
    ) -> None:
        self.state: State | None = None  # until VERSION
        self._connection = connection
        self._device = device
        self._peer = peer
        self._limits = limits

    def run(self, *, reset: bool = True) -> None:
        """Serve, then put the device back: with a reset, if *reset*."""
        why = "after an error of the bridge's own"
        try:
            self._device.prepare()
            self.state = self._negotiate()
            log.info("%s: serving %s", self._device.name, self._peer)
            self._serve(self.state)
        except PeerGoneError as error:
            why = str(error)
        except ProtocolError as error:
            why = f"put out: {error}"
            with suppress(PeerGoneError):
                self._connection.flush()  # what made sense is answered
        except (OSError, MemoryError, DeviceError) as error:
            why = f"put out: the host fails us: {str(error) or 'no memory'}"
            log.error("%s: %s", self._device.name, why)
        finally:
            self._clean_up(reset=reset)
            self._report(why)

    def _negotiate(self) -> State:
        """The first message must be VERSION, and soon: a silent stranger would bar the others."""
        connection, device, limits = self._connection, self._device, self._limits
        connection.hurry(True)
        message = connection.receive()
        try:
            if message.command != Command.VERSION or message.flags & TYPE_MASK != TYPE_COMMAND:
                raise refuse(errno.EINVAL, "its first message isn't VERSION")
            proposal = Version.unpack(message.payload)
            if proposal.major != MAJOR:
                raise refuse(errno.EINVAL, f"it speaks version {proposal.major}, not {MAJOR}")
        except OSError as error:
            self._send_error(message, error)
            raise ProtocolError(error.strerror) from None
        finally:
            message.close_fds()
        theirs = proposal.capabilities
        ours = replace(
            theirs,
            max_msg_fds=limits.fds,
            max_data_xfer_size=limits.transfer,
            max_dma_maps=min(theirs.max_dma_maps, device.max_dma_maps, limits.maps),
            pgsizes=device.pgsizes,
        )
        self._send(message, Version(MAJOR, min(proposal.minor, MINOR), ours).pack())
        connection.hurry(False)
        connection.max_size = HEADER.size + PAYLOAD_OVERHEAD + ours.max_data_xfer_size
        # What the client can take is its own word; all else is as we answered.
        state = State(replace(ours, max_msg_fds=theirs.max_msg_fds))
        state.messages[Command.VERSION] = 1
        return state

    def _serve(self, state: State) -> None:
        connection = self._connection
        receive, send = connection.receive, self._send
        handlers, counts = Requests(self._device, state).handlers, state.messages
        while True:
            message = receive()
            try:
                if message.flags & TYPE_MASK != TYPE_COMMAND:
                    raise ProtocolError("it replied, but nobody had asked")
                handler = handlers.get(message.command)
                if handler is None:
                    raise refuse(errno.EINVAL, "there is no such command")
                counts[message.command] += 1
                if message.command not in _QUICK:
                    connection.flush()
                reply = handler(message)
            except OSError as error:
                state.refused += 1
                self._send_error(message, error)
            else:
                send(message, reply)
            finally:
                if message.fds:
                    message.close_fds()

    def _send(self, message: Message, reply: bytes) -> None:
        if not message.flags & FLAG_NO_REPLY:
            size = HEADER.size + len(reply)
            head = HEADER.pack(message.id, message.command, size, TYPE_REPLY, 0)
            self._connection.send(head + reply, message.reply_fds)

    def _send_error(self, message: Message, error: OSError) -> None:
        name, what = self._device.name, command_name(message.command)
        log.info("%s: refused %s of %s: %s", name, what, self._peer, error.strerror or error)
        if not message.flags & FLAG_NO_REPLY:
            # Fewer vectors than wanted travel as a negative errno: see irqs.py.
            flags, code = TYPE_REPLY | FLAG_ERROR, (error.errno or errno.EIO) & 0xFFFF_FFFF
            head = HEADER.pack(message.id, message.command, HEADER.size, flags, code)
            self._connection.send(head)

    def _clean_up(self, *, reset: bool) -> None:
        # Whatever a device does wrong here, the maps go and the client is let go. The stack ends in
        # reverse: the device first, its memory after, for DMA in flight must not find its map gone.
        with ExitStack() as stack:
            stack.callback(self._connection.close)
            if self.state:
                for entry in self.state.maps:
                    stack.callback(self._unmap, entry)
                stack.callback(self._device.quiesce, reset=reset)

    def _unmap(self, entry: DmaMap) -> None:
        try:
            self._device.dma_unmap(entry)
        except OSError as error:
            log.error("%s: unmapping: %s", self._device.name, error.strerror)

    def _report(self, why: str) -> None:
        if not self.state:
            log.info("%s: %s came and went: %s", self._device.name, self._peer, why)
            return
        counts = sorted(self.state.messages.items(), key=lambda item: -item[1])
        log.info(
            "%s: client gone after %.1f s: %d messages (%s), %d refused; %s",
            self._device.name,
            time.monotonic() - self.state.since,
            sum(self.state.messages.values()),
            ", ".join(f"{command_name(command)} {count}" for command, count in counts if count),
            self.state.refused,
            why,
        )


def command_name(command: int) -> str:
    try:
        return Command(command).name
    except ValueError:
        return f"command {command}"
