# SPDX-License-Identifier: BSD-3-Clause
"""One client's conversation: negotiate, answer in order, clean up behind it."""

from __future__ import annotations

import errno
import logging
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import replace

from .counters import SHORTEST, Counters, bucket
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


class Session:
    """Serves *device* to the client on *connection* until it goes.

    :param peer: who it is, for the log
    :param turn: held while the device is at work for a client: a device has one thread at a time
    """

    def __init__(
        self,
        connection: Connection,
        device: Device,
        peer: str,
        limits: Limits = DEFAULTS,
        turn: threading.Lock | None = None,
    ) -> None:
        self.state: State | None = None  # until VERSION
        self.counters = Counters()
        self._turn = turn or threading.Lock()
        self._connection = connection
        self._device = device
        self._peer = peer
        self._limits = limits

    def run(self, *, reset: bool = True) -> None:
        """Serve, then put the device back: with a reset, if *reset*."""
        why = "after an error of the bridge's own"
        try:
            with self._turn:
                self._device.prepare()
            self.state = self._negotiate()
            log.info("%s: serving %s", self._device.name, self._peer)
            self._serve(self.state)
        except PeerGoneError as error:
            why = str(error)
        except ProtocolError as error:
            why = f"put out: {error}"
            self.counters.blame(why)
            with suppress(PeerGoneError):
                self._connection.flush()  # what made sense is answered
        except (OSError, MemoryError, DeviceError) as error:
            failure = str(error) or "no memory"
            why = f"put out: the host fails us: {failure}"
            self.counters.blame(why)
            log.error(
                "%s: the host fails us, the client is put out: %s", self._device.name, failure
            )
        finally:
            with self._turn:
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
            self._refuse(message, error)
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
        connection.done()
        connection.hurry(False)
        connection.max_size = HEADER.size + PAYLOAD_OVERHEAD + ours.max_data_xfer_size
        # What the client can take is its own word; all else is as we answered.
        self._count(Command.VERSION)
        return State(replace(ours, max_msg_fds=theirs.max_msg_fds), counters=self.counters)

    def _count(self, command: int) -> None:
        """The message that came last is done with; `_serve` has it in line."""
        now = time.perf_counter_ns()
        self.counters.rows[command][bucket(now - self._connection.now | SHORTEST)] += 1
        self._connection.now = now

    def _serve(self, state: State) -> None:
        connection, turn = self._connection, self._turn
        receive, send, clock = connection.receive, self._send, time.perf_counter_ns
        begin, done = connection.begin, connection.done
        take_turn, end_turn = turn.acquire, turn.release
        handlers, rows = Requests(self._device, state).handlers, self.counters.rows
        while True:
            message = receive()
            try:
                if message.flags & TYPE_MASK != TYPE_COMMAND:
                    raise ProtocolError("it replied, but nobody had asked")
                command = message.command
                handler = handlers.get(command)
                if handler is None:
                    self._refuse(message, refuse(errno.EINVAL, "there is no such command"))
                    done()
                    continue
                refusal = None
                if not take_turn(False):
                    connection.pause()
                    take_turn()
                try:
                    begin()
                    reply = handler(message)
                except OSError as error:
                    refusal = error
                finally:
                    now = clock()
                    took, connection.now = now - connection.now | SHORTEST, now
                    bits = took.bit_length()
                    rows[command][(bits << 3) + (took >> bits - 4)] += 1  # counters.bucket
                    end_turn()
                # A client that takes its time to take a reply has the device no longer at work.
                if refusal:
                    self._refuse(message, refusal)
                else:
                    send(message, reply)
                done()
            finally:
                if message.fds:
                    message.close_fds()

    def _send(self, message: Message, reply: bytes) -> None:
        if not message.flags & FLAG_NO_REPLY:
            size = HEADER.size + len(reply)
            head = HEADER.pack(message.id, message.command, size, TYPE_REPLY, 0)
            self._connection.send(head + reply, message.reply_fds)
        else:
            self._connection.skip()

    def _refuse(self, message: Message, error: OSError) -> None:
        name, what = self._device.name, command_name(message.command)
        log.info("%s: refused %s of %s: %s", name, what, self._peer, error.strerror or error)
        self.counters.refuse(f"refused {what}: {error.strerror or error}")
        if not message.flags & FLAG_NO_REPLY:
            # Fewer vectors than wanted travel as a negative errno: see irqs.py.
            flags, code = TYPE_REPLY | FLAG_ERROR, (error.errno or errno.EIO) & 0xFFFF_FFFF
            head = HEADER.pack(message.id, message.command, HEADER.size, flags, code)
            self._connection.send(head)
        else:
            self._connection.skip()

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
            log.error("%s: can't take a DMA map back: %s", self._device.name, error.strerror)

    def _report(self, why: str) -> None:
        if not self.state:
            log.info("%s: %s came and went: %s", self._device.name, self._peer, why)
            return
        counts = self.counters.messages()
        log.info(
            "%s: client gone after %.1f s: %d messages (%s), %d refused; %s",
            self._device.name,
            time.monotonic() - self.state.since,
            sum(counts.values()),
            ", ".join(f"{command_name(command)} {count}" for command, count in counts.items()),
            self.counters.refused,
            why,
        )


def command_name(command: int) -> str:
    try:
        return Command(command).name
    except ValueError:
        return f"command {command}"
