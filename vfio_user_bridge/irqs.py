# SPDX-License-Identifier: BSD-3-Clause
"""The interrupts of a device under kernel VFIO: which eventfds they have, and who is told what.

Eventfds go straight into VFIO_DEVICE_SET_IRQS. Two kinds need more:

- Types that VFIO_IRQ_INFO_NORESIZE marks, MSI above all, can't grow once enabled, but a client may
  have more eventfds than fit into a message and set them in pieces. Their eventfds are kept, and a
  set that must grow is switched off and made anew.
- The device request (VFIO_PCI_REQ_IRQ_INDEX) tells two: the client, which unplugs the device, and
  the bridge, which holds it as well. The kernel has our eventfd; the client's is signalled from it.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from . import eventfd
from .device import IrqFlags, PciIrq
from .kernel import vfio
from .messages import IRQ_SET_EVENTFDS, IRQ_SET_OFF, IrqInfo, IrqSet, IrqSetFlags
from .protocol import refuse


class Interrupts:
    """What the client of one device has set up.

    :param types: what the device has
    """

    def __init__(self, types: Sequence[IrqInfo]) -> None:
        self._device = -1
        self._noresize = {irq.index for irq in types if irq.flags & IrqFlags.NORESIZE}
        self._enabled: set[int] = set()  # the types that have had eventfds since they were off
        self._kept: dict[int, list[int]] = {}  # eventfds of NORESIZE types, -1 where there is none
        self._lock = threading.Lock()  # the request is forwarded by another thread
        self._client_request = -1
        #: readable once the host wants the device back; -1 where the kernel doesn't say
        self.request = -1
        if any(irq.index == PciIrq.REQ and irq.count for irq in types):
            self.request = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def attach(self, device: int) -> None:
        """Begin with a device that was just opened: no interrupt of it is set up."""
        self._device = device
        for index in (*self._kept, *self._enabled):
            self._forget(index)
        if self.request >= 0:
            self._to_kernel(IrqSet(IRQ_SET_EVENTFDS, PciIrq.REQ, 0, 1), (self.request,))

    def set(self, request: IrqSet, eventfds: Sequence[int]) -> None:
        """``VFIO_DEVICE_SET_IRQS``, already checked against the type's count.

        :raise OSError: the kernel's; with -n for an errno if there are only n vectors to be had
        """
        if request.index == PciIrq.REQ:
            self._set_request(request, eventfds)
            return
        if request.flags == IRQ_SET_EVENTFDS and request.index in self._noresize:
            self._set_kept(request, eventfds)
        else:
            self._to_kernel(request, eventfds)
        # A lone interrupt is off once its eventfd is gone (vfio_pci_set_ctx_trigger_single), and
        # switching it off again would be EINVAL; the other types stay enabled without any.
        gone = request.index == PciIrq.ERR and request.flags == IRQ_SET_EVENTFDS and not eventfds
        if not request.count or gone:
            self._forget(request.index)
        elif request.flags == IRQ_SET_EVENTFDS and eventfds:
            self._enabled.add(request.index)

    def off(self, index: int) -> None:
        self._to_kernel(IrqSet(IRQ_SET_OFF, index, 0, 0), ())
        self._forget(index)

    @property
    def enabled(self) -> list[int]:
        """The types that the client has set up with the kernel."""
        return sorted(self._enabled)

    def _to_kernel(self, request: IrqSet, eventfds: Sequence[int]) -> None:
        if request.flags & IrqSetFlags.DATA_EVENTFD:
            # -1 takes an interrupt's eventfd away, which the wire says by sending none.
            fds = eventfds or [-1] * request.count
            request = replace(request, data=struct.pack(f"={request.count}i", *fds))
        possible = vfio.set_irqs(self._device, request.pack())
        if possible > 0:
            # QEMU negates what the reply has for an errno, and so gets what the ioctl gives.
            raise refuse(-possible, f"the host has {possible} vectors of {request.count} wanted")

    def _set_kept(self, request: IrqSet, eventfds: Sequence[int]) -> None:
        kept = self._kept.get(request.index, [])
        end = request.start + request.count
        fds = list(eventfds) or [-1] * request.count
        with ExitStack() as undo:
            new = []
            for fd in fds:
                new.append(os.dup(fd) if fd >= 0 else -1)
                undo.callback(_close, new[-1])
            if not kept or end <= len(kept):
                self._to_kernel(request, eventfds)
            else:
                wanted = [*kept, *[-1] * (end - len(kept))]
                wanted[request.start : end] = fds
                self._replace(request.index, kept, wanted)
            undo.pop_all()  # from here on nothing fails
        kept += [-1] * (end - len(kept))
        for at, fd in enumerate(new, request.start):
            _close(kept[at])
            kept[at] = fd
        self._kept[request.index] = kept

    def _replace(self, index: int, before: list[int], after: list[int]) -> None:
        """Replace one set of eventfds by a larger one; by itself again if that can't be had."""
        self._to_kernel(IrqSet(IRQ_SET_OFF, index, 0, 0), ())
        try:
            self._to_kernel(IrqSet(IRQ_SET_EVENTFDS, index, 0, len(after)), after)
        except OSError:
            self._to_kernel(IrqSet(IRQ_SET_EVENTFDS, index, 0, len(before)), before)
            raise

    def _set_request(self, request: IrqSet, eventfds: Sequence[int]) -> None:
        """What vfio_pci_set_ctx_trigger_single does, with an eventfd that is ours to signal."""
        if not request.flags & IrqSetFlags.ACTION_TRIGGER:
            raise refuse(errno.ENOTTY, "a device request can't be masked")
        with self._lock:
            if request.flags & IrqSetFlags.DATA_EVENTFD or not request.count:
                new = eventfd.duplicate(eventfds[0]) if eventfds else -1
                _close(self._client_request)
                self._client_request = new
            elif request.data != b"\0":
                self._signal_client()

    def forward_request(self) -> None:
        """The kernel has signalled `request`: tell the client too."""
        eventfd.take(self.request)
        with self._lock:
            self._signal_client()

    def _signal_client(self) -> None:
        if self._client_request >= 0:
            eventfd.signal(self._client_request)

    def forget_client(self) -> None:
        """Its eventfd for the device request goes; the kernel's others go with `off`."""
        self._set_request(IrqSet(IRQ_SET_OFF, PciIrq.REQ, 0, 0), ())

    def _forget(self, index: int) -> None:
        self._enabled.discard(index)
        for fd in self._kept.pop(index, ()):
            _close(fd)

    def close(self) -> None:
        """Let go of all eventfds; the kernel lets go of its own with the device."""
        for index in (*self._kept, *self._enabled):
            self._forget(index)
        for fd in (self.request, self._client_request):
            _close(fd)
        self.request = self._client_request = -1


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)
