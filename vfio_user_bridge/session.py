# SPDX-License-Identifier: BSD-3-Clause
"""One client's conversation: negotiate, answer in order, clean up behind it."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace

from .counters import SHORTEST, Counters, bucket
from .device import Device
from .errors import DeviceError
from .files import Files
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
from .requests import Requests
from .state import Journal, Ledger, State
from .transport import Connection, Message, PeerGoneError

log = logging.getLogger(__name__)

MAJOR = 0
MINOR = 1


class Session:
    """Serves *device* to the client on *connection* until it goes.

    :param peer: who it is, for the log
    :param turn: held while the device is at work for a client: a device has one thread at a time
    :param state: where a predecessor left it
    :param ledger: where its state is written down
    :param gone: called when the client has gone, before the device is put back
    """

    #: what serve --engine calls it
    engine = "native"
    #: whether a successor can go on with it
    can_be_resumed = True

    def __init__(
        self,
        connection: Connection,
        device: Device,
        peer: str,
        limits: Limits = DEFAULTS,
        turn: threading.Lock | None = None,
        *,
        state: State | None = None,
        ledger: Ledger | None = None,
        gone: Callable[[], None] = lambda: None,
    ) -> None:
        self.state = state  # None until VERSION
        rows = ledger.journal.rows() if ledger else None
        self.counters = state.counters if state else Counters(rows)
        self._ledger = ledger
        self._gone = gone
        self._turn = turn or threading.Lock()
        self._connection = connection
        self._device = device
        self._peer = peer
        self._limits = limits

    def run(self, *, reset: bool = True) -> None:
        """Serve, then put the device back: with a reset, if *reset*."""
        why = "after an error of the bridge's own"
        try:
            self._connection.start()
            if self.state is None:
                with self._turn:
                    self._device.prepare()
                state = self._negotiate()
                log.info("%s: serving %s", self._device.name, self._peer)
            else:
                state = self.state
                with self._turn:
                    self._device.go_on()
                log.info("%s: going on with %s", self._device.name, self._peer)
                self._go_on(state)
            self._serve(state)
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
        with self._turn:
            connection.begin()
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
        # What the client can take is its own word; all else is as we answered.
        agreed = replace(ours, max_msg_fds=theirs.max_msg_fds)
        self.state = state = State(
            agreed, counters=self.counters, files=Files(limits.files), ledger=self._ledger
        )
        state.write_down()
        self._send(message, Version(MAJOR, min(proposal.minor, MINOR), ours).pack())
        self._count(Command.VERSION)
        connection.done()
        self._are_agreed(state)
        return state

    def _are_agreed(self, state: State) -> None:
        most = state.capabilities.max_data_xfer_size
        self._connection.max_size = HEADER.size + PAYLOAD_OVERHEAD + most
        self._connection.hurry(False)

    def _go_on(self, state: State) -> None:
        """Where a predecessor was: send what it had yet to send; answer what it had begun."""
        journal = self._ledger and self._ledger.journal
        self._are_agreed(state)
        self._connection.send_placed()
        if journal and journal.lost:
            raise ProtocolError("its bridge was killed over a message that is lost with it")
        if journal and journal.begun:
            self._answer_again(journal, state)

    def _answer_again(self, journal: Journal, state: State) -> None:
        """What comes next is what a predecessor was killed over: do it again if it may be, once."""
        connection = self._connection
        requests = Requests(self._device, state)
        message = connection.receive()
        name, what = self._device.name, command_name(message.command)
        try:
            with self._turn:
                tried = journal.again()
                connection.begin()
                try:
                    if tried or not requests.repeatable(message):
                        log.error(
                            "%s: its bridge was killed over %s of %s; nobody knows whether that was"
                            " done: it is answered with an error",
                            name,
                            what,
                            self._peer,
                        )
                        raise refuse(errno.EIO, "its bridge was killed over it")
                    log.warning("%s: its bridge was killed over %s: doing that again", name, what)
                    reply = requests.again(message)
                    state.write_down_or_later()
                except OSError as error:
                    self._refuse(message, error)
                else:
                    self._send(message, reply)
            journal.answered()
            connection.done()
        finally:
            message.close_fds()

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
        volatile = self._device.volatile and self._ledger is not None
        handlers, rows = Requests(self._device, state).handlers, self.counters.rows
        while True:
            message = receive()
            try:
                if message.flags & TYPE_MASK != TYPE_COMMAND:
                    raise ProtocolError("it replied, but nobody had asked")
                command = message.command
                handler = handlers.get(command)
                if handler is None:
                    with turn:
                        begin()
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
                    if state.changed or (volatile and command != Command.REGION_READ):
                        state.write_down_or_later()
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
                stack.callback(self.state.files.close)
                for entry in self.state.maps:
                    stack.callback(self._unmap, entry)
                stack.callback(self._device.quiesce, reset=reset)
            # Before all that: a successor would have to begin anew.
            stack.callback(self._gone)

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
