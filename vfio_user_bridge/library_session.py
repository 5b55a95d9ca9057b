# SPDX-License-Identifier: BSD-3-Clause
"""One client's conversation, answered by libvfio-user instead of `requests`.

The library accepts clients from a socket of its own, but ours has accepted this one already. So a
stand-in connects to the library and says the client's VERSION; what the library answers goes to the
client, and the client's socket takes the stand-in's place. From then on the library reads from it
and answers. A client that is silent, or one too many, never gets that far.

Callbacks bring region accesses, resets and masks to the device. There is none for eventfds, and the
one for DMA maps has neither the file nor a way to refuse. So those requests are read first, while
they wait in the socket (MSG_PEEK), and the device does them before the library answers; if the
device refuses, we answer in the library's place. The device gets eventfds of ours, whose signals go
to vfu_irq_trigger.

One thread does everything: the library isn't thread-safe.
"""

from __future__ import annotations

import array
import ctypes
import errno
import logging
import os
import select
import socket
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import eventfd
from . import libvfio_user as vfu
from .device import Device, PciIrq, RegionFlags
from .messages import DmaMap, IrqSet, IrqSetFlags, RegionInfo
from .protocol import (
    HEADER,
    TYPE_COMMAND,
    TYPE_MASK,
    Capabilities,
    Command,
    ProtocolError,
    refuse,
)
from .relay import Relay
from .requests import Requests, State
from .session import MAX_MSG_FDS, Session
from .transport import Connection, Message, PeerGoneError

log = logging.getLogger(__name__)

#: VFIO_REGION_INFO_CAP_SPARSE_MMAP, the only capability that the library knows
_SPARSE_MMAP = 1
_NR_AREAS = struct.Struct("=I4x")  # then one for each area: offset, size
_AREA = struct.Struct("=QQ")
#: the types that vfu_irq_trigger serves; it has no way to signal the others
_IRQS = (PciIrq.INTX, PciIrq.MSI, PciIrq.MSIX)

#: the longest message that must be known whole: SET_IRQS and DMA_MAP; bytes of it
_PEEK = HEADER.size + DmaMap.FORMAT.size
#: the shortest of them
_LEAST = HEADER.size + IrqSet.FORMAT.size
_CONTROL = socket.CMSG_SPACE(MAX_MSG_FDS * array.array("i").itemsize)
_EVENTFDS = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_TRIGGER
_OFF = IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_TRIGGER


class LibrarySession(Session):
    """Serves *device* to the client on *connection*, through the library, until it goes."""

    def __init__(self, connection: Connection, device: Device, peer: str) -> None:
        super().__init__(connection, device, peer)
        self._requests: Requests  # once there is a state
        self._library: Any = vfu.load()
        self._context: int | None = None
        self._callbacks: list[Any] = []  # kept for C
        self._relay = Relay(self._trigger)
        self._by_eventfd = False  # what the latest SET_IRQS says is said by eventfds
        self._command = 0  # of the message that the library has
        self._accepted = False  # the library has, the DMA map that it was given
        self._preparations = {
            Command.DMA_MAP: self._prepare_map,
            Command.DEVICE_SET_IRQS: self._prepare_irqs,
        }
        self._regions = [device.region_info(index) for index in range(device.info.num_regions)]

    # ---- What the library is told of the device ---------------------------------------------

    def _create(self, path: Path) -> None:
        library, device = self._library, self._device
        self._context = context = library.vfu_create_ctx(
            vfu.VFU_TRANS_SOCK,
            os.fsencode(path),
            vfu.LIBVFIO_USER_FLAG_ATTACH_NB,
            None,
            vfu.VFU_DEV_TYPE_PCI,
        )
        level = vfu.LOG_DEBUG if log.isEnabledFor(logging.DEBUG) else vfu.LOG_INFO
        library.vfu_setup_log(context, self._callback("vfu_log_fn_t", self._log), level)
        for region in self._regions[: vfu.VFU_PCI_DEV_NUM_REGIONS]:
            if region.index == vfu.VFU_PCI_DEV_CFG_REGION_IDX:
                express = region.size > 256
                kind = vfu.VFU_PCI_TYPE_EXPRESS if express else vfu.VFU_PCI_TYPE_CONVENTIONAL
                library.vfu_pci_init(context, kind, 0, 0)
            if region.size:
                self._set_up_region(region)
        for index in range(vfu.VFU_DEV_NUM_IRQS):
            known = index in _IRQS and index < device.info.num_irqs
            count = device.irq_info(index).count if known else 0
            library.vfu_setup_device_nr_irqs(context, index, count)
        library.vfu_setup_irq_state_callback(
            context,
            vfu.VFU_DEV_INTX_IRQ,
            self._callback("vfu_dev_irq_state_cb_t", self._mask),
        )
        library.vfu_setup_device_dma(
            context,
            device.max_dma_maps,
            self._callback("vfu_dma_register_cb_t", self._registered),
            self._callback("vfu_dma_unregister_cb_t", self._unregister),
        )
        library.vfu_setup_device_reset_cb(context, self._callback("vfu_reset_cb_t", self._reset))
        library.vfu_realize_ctx(context)

    def _set_up_region(self, region: RegionInfo) -> None:
        # No FLAG_MEM: it is for BARs in config space, all of which ALWAYS_CB leaves to the device.
        flags = region.flags & (vfu.VFU_REGION_FLAG_READ | vfu.VFU_REGION_FLAG_WRITE)
        if region.index == vfu.VFU_PCI_DEV_CFG_REGION_IDX:
            flags |= vfu.VFU_REGION_FLAG_ALWAYS_CB
        areas = [vfu.Iovec(*area) for area in mappable_areas(region)]
        self._library.vfu_setup_region(
            self._context,
            region.index,
            region.size,
            self._callback("vfu_region_access_cb_t", self._access_to(region)),
            flags,
            (vfu.Iovec * len(areas))(*areas) if areas else None,
            len(areas),
            self._device.region_fd(region.index) if areas else -1,
            region.offset,
        )

    def _callback(self, name: str, act: Any) -> Any:
        made = vfu.callback(name, act)
        self._callbacks.append(made)
        return made

    # ---- What the library asks of the device ------------------------------------------------

    def _access_to(self, region: RegionInfo) -> Any:
        index, device = region.index, self._device
        readable, writable = region.flags & RegionFlags.READ, region.flags & RegionFlags.WRITE

        def access(buffer: int, count: int, offset: int, is_write: bool) -> int:
            if is_write:
                if not writable:
                    raise refuse(errno.EINVAL, f"region {index} can't be written")
                device.region_write(index, offset, ctypes.string_at(buffer, count))
                self._relay.pass_on()  # what a write raises is there before its reply is
                return count
            if not readable:
                raise refuse(errno.EINVAL, f"region {index} can't be read")
            data = device.region_read(index, offset, count)
            ctypes.memmove(buffer, data, min(len(data), count))
            return len(data)

        return access

    def _reset(self, reason: int) -> None:
        # When the connection is lost, `_clean_up` comes: the device before its memory.
        if reason != vfu.VFU_RESET_LOST_CONN:
            self._device.reset()

    def _mask(self, start: int, count: int, mask: bool) -> None:
        if self._by_eventfd:
            return  # the device has that; the library takes it for a mask of this moment
        action = IrqSetFlags.ACTION_MASK if mask else IrqSetFlags.ACTION_UNMASK
        request = IrqSet(action | IrqSetFlags.DATA_NONE, vfu.VFU_DEV_INTX_IRQ, start, count)
        self._device.set_irqs(request, ())
        self._relay.pass_on()

    def _registered(self, _info: Any) -> None:
        self._accepted = True

    def _unregister(self, info: Any) -> None:
        # At the end of a connection all go; then it is `_clean_up` that takes them from the device.
        if self._command == Command.DMA_UNMAP and self.state:
            for entry in self.state.maps.overlapping(info[0].iova.iov_base or 0, 1):
                self._device.dma_unmap(entry)
                self.state.maps.remove(entry)

    def _trigger(self, subindex: int) -> None:
        try:
            self._library.vfu_irq_trigger(self._context, subindex)
        except OSError as error:
            # The client has taken its eventfd back, or has yet to read a full one.
            if error.errno not in (errno.ENOENT, errno.EAGAIN):
                log.error("%s: %s", self._device.name, error)

    def _log(self, level: int, text: bytes) -> None:
        # What the library calls errors are the client's, as are those that `Session` logs.
        python = logging.DEBUG if level >= vfu.LOG_DEBUG else logging.INFO
        log.log(python, "%s: libvfio-user: %s", self._device.name, text.decode(errors="replace"))

    # ---- The conversation -------------------------------------------------------------------

    def _negotiate(self) -> State:
        connection = self._connection
        connection.hurry(True)
        version = connection.receive()
        version.close_fds()
        with tempfile.TemporaryDirectory(prefix="vfio-user-bridge-") as folder:
            path = Path(folder) / "library"
            self._create(path)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stand_in:
                stand_in.connect(str(path))
                stand_in.sendall(_bytes(version))
                refusal = self._attach()
                try:
                    reply, fds = _receive(stand_in, 1 << 16)
                except ConnectionResetError:
                    reply, fds = b"", []  # it was refused without a word
        try:
            connection.send(reply, fds)
        finally:
            for fd in fds:
                os.close(fd)
        if refusal:
            raise ProtocolError(f"libvfio-user refuses it: {refusal.strerror}")
        # Still, or again: the library may wait for the rest of a message, but not forever.
        connection.hurry(True)
        state = State(Capabilities(max_dma_maps=self._device.max_dma_maps))
        state.messages[Command.VERSION] = 1
        return state

    def _attach(self) -> OSError | None:
        """Let the library accept the stand-in, and replace that by the client if it does."""
        try:
            self._library.vfu_attach_ctx(self._context)
        except OSError as error:
            return error
        theirs = self._library.vfu_get_poll_fd(self._context)
        os.dup2(self._connection.socket.fileno(), theirs, inheritable=False)
        return None

    def _serve(self, state: State) -> None:
        self._requests = Requests(self._device, state)
        client, relay = self._connection.socket.fileno(), self._relay.fileno()
        poll = select.poll()
        poll.register(client, select.POLLIN)
        poll.register(relay, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
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
        _id, command, size, flags, _error = HEADER.unpack_from(head)
        if command in state.messages:
            state.messages[command] += 1
        prepare = self._preparations.get(command)
        if not prepare or size < _LEAST or flags & TYPE_MASK != TYPE_COMMAND:
            self._run(command)  # none of those, or none at all, as the library says itself
            return
        message = self._peek(head)
        try:
            undo = prepare(state, message)
        except OSError as error:
            refused = self._connection.receive()  # it is in the library's way no more
            refused.close_fds()
            state.refused += 1
            self._send_error(refused, error)
        else:
            self._run(command)
            undo()
        finally:
            message.close_fds()

    def _peek(self, head: bytes) -> Message:
        """The message that waits and duplicates of its files, which are the caller's to close."""
        data, fds = _receive(self._connection.socket, _PEEK, socket.MSG_PEEK)
        id_, command, size, flags, _error = HEADER.unpack_from(head)
        message = Message(id_, command, flags, memoryview(data)[HEADER.size : size], fds)
        if len(data) < min(size, _PEEK):
            message.close_fds()
            raise ProtocolError("a message in pieces, which libvfio-user can't take either")
        return message

    def _run(self, command: int) -> None:
        """Have the library read one message and answer it."""
        self._command = command
        try:
            self._library.vfu_run_ctx(self._context)
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
                state.maps.remove(request)

        return undo

    def _prepare_irqs(self, _state: State, message: Message) -> Callable[[], None]:
        """Give the device our eventfds in place of the client's, before the client hears of it.

        Those that mask and unmask go to the device as they are: the library forgets them. All else
        that SET_IRQS can say is between the library and the client's eventfds, but for `_mask`.
        """
        request = IrqSet.unpack(message.payload)
        self._by_eventfd = bool(request.flags & IrqSetFlags.DATA_EVENTFD)
        signals = request.flags == _EVENTFDS
        off = request.flags == _OFF and not request.count
        if request.index not in _IRQS or not (self._by_eventfd or off):
            return _nothing
        if request.start + len(message.fds) > self._device.irq_info(request.index).count:
            return _nothing  # the library refuses it
        fds = message.fds
        if signals:
            for fd in message.fds:
                os.close(eventfd.duplicate(fd))  # nothing else may be written to as if it were one
            fds = self._relay.eventfds(request.index, request.start, len(message.fds))
        for_device = Message(message.id, message.command, message.flags, message.payload, fds)
        self._requests.handlers[Command.DEVICE_SET_IRQS](for_device)
        if off:
            self._relay.drop(request.index)
        return _nothing

    def _clean_up(self, *, reset: bool) -> None:
        try:
            super()._clean_up(reset=reset)
        finally:
            self._relay.close()
            if self._context:
                self._library.vfu_destroy_ctx(self._context)


def mappable_areas(region: RegionInfo) -> list[tuple[int, int]]:
    """What of *region* may be mapped: offset and size of each area, in bytes."""
    if not region.flags & RegionFlags.MMAP:
        return []
    for capability in region.capabilities:
        if capability.id == _SPARSE_MMAP:
            (count,) = _NR_AREAS.unpack_from(capability.data)
            areas = capability.data[_NR_AREAS.size :][: count * _AREA.size]
            return list(_AREA.iter_unpack(areas))
    return [(0, region.size)]


def _receive(sock: socket.socket, size: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """What waits in *sock*, up to *size* bytes, and the files that came with it."""
    # Not socket.recv_fds(), which forgets the flags it is given.
    data, control, _, _ = sock.recvmsg(
        size, _CONTROL, flags | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, content in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) // fds.itemsize * fds.itemsize])
    return data, list(fds)


def _bytes(message: Message) -> bytes:
    size = HEADER.size + len(message.payload)
    return HEADER.pack(message.id, message.command, size, message.flags, 0) + message.payload


def _nothing() -> None:
    return
