# SPDX-License-Identifier: BSD-3-Clause
"""The interrupts of a device under kernel VFIO: which eventfds they have, and who is told what.

Eventfds go straight into VFIO_DEVICE_SET_IRQS. Two kinds need more:

- Types that VFIO_IRQ_INFO_NORESIZE marks, MSI above all, can't grow once enabled, but a client may
  have more eventfds than fit into a message and set them in pieces. Their eventfds are kept, and a
  set that must grow is switched off and made anew.
- The device request (VFIO_PCI_REQ_IRQ_INDEX) tells two: the client, which unplugs the device, and
  the bridge, which holds it as well. The kernel has our eventfd; the client's is signalled from it.

What a predecessor may have done already when it was killed can be asked for again: where the kernel
says no because it is done, what we know of before tells so.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from . import eventfd
from .device import IrqFlags, Keep, PciIrq, Take
from .eventfd import Kept
from .kernel import vfio
from .messages import IRQ_SET_EVENTFDS, IRQ_SET_OFF, IrqInfo, IrqSet, IrqSetFlags
from .protocol import refuse

_UNMASK_BY_EVENTFD = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_UNMASK


class Interrupts:
    """What the client of one device has set up.

    :param types: what the device has
    """

    def __init__(self, types: Sequence[IrqInfo]) -> None:
        self._device = -1
        self._noresize = {irq.index for irq in types if irq.flags & IrqFlags.NORESIZE}
        self._enabled: set[int] = set()  # the types that have had eventfds since they were off
        self._kept: dict[int, list[Kept]] = {}  # eventfds of NORESIZE types
        self._unmasked_by_eventfd = False
        self._lock = threading.Lock()  # the request is forwarded by another thread
        self._client_request = Kept()
        self._tells_requests = any(irq.index == PciIrq.REQ and irq.count for irq in types)
        self._request = Kept()

    @property
    def request(self) -> int:
        """Readable once the host wants the device back; -1 where the kernel doesn't say."""
        return self._request.fd

    def attach(self, device: int) -> None:
        """Begin with a device that was just opened: no interrupt of it is set up."""
        self._device = device
        for index in (*self._kept, *self._enabled):
            self._forget(index)
        self._unmasked_by_eventfd = False
        if not self._tells_requests:
            return
        if self.request < 0:
            self._request = Kept(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self._to_kernel(IrqSet(IRQ_SET_EVENTFDS, PciIrq.REQ, 0, 1), (self.request,))

    def save(self, keep: Keep) -> dict[str, Any]:
        """What a successor needs: see `Device.save`."""
        return {
            "enabled": self.enabled,
            "kept": [
                [index, [event.save(keep) for event in kept]] for index, kept in self._kept.items()
            ],
            "unmasked by eventfd": self._unmasked_by_eventfd,
            "request": self._request.save(keep),
            "client's request": self._client_request.save(keep),
        }

    def restore(self, device: int, saved: Mapping[str, Any], take: Take) -> None:
        """Go on with a device that a predecessor has set up.

        :raise BridgeError: an eventfd of it isn't there
        """
        self._device = device
        self._enabled = set(saved["enabled"])
        for index, names in saved["kept"]:
            self._kept[index] = []
            self._kept[index].extend(Kept.restore(name, take) for name in names)  # none is lost
        self._unmasked_by_eventfd = saved["unmasked by eventfd"]
        self._request = Kept.restore(saved["request"], take)
        self._client_request = Kept.restore(saved["client's request"], take)

    def set(self, request: IrqSet, eventfds: Sequence[int]) -> None:
        """``VFIO_DEVICE_SET_IRQS``, already checked against the type's count.

        :raise OSError: the kernel's; with -n for an errno if there are only n vectors to be had
        """
        if request.index == PciIrq.REQ:
            self._set_request(request, eventfds)
            return
        if not request.count:
            self.off(request.index)
            return
        if request.flags == IRQ_SET_EVENTFDS and request.index in self._noresize:
            self._set_kept(request, eventfds)
        elif request.flags == _UNMASK_BY_EVENTFD:
            self._unmask_by(request, eventfds)
        else:
            self._to_kernel(request, eventfds)
        # A lone interrupt is off once its eventfd is gone (vfio_pci_set_ctx_trigger_single), and
        # switching it off again would be EINVAL; the other types stay enabled without any.
        if request.index == PciIrq.ERR and request.flags == IRQ_SET_EVENTFDS and not eventfds:
            self._forget(request.index)
        elif request.flags == IRQ_SET_EVENTFDS and eventfds:
            self._enabled.add(request.index)

    def off(self, index: int) -> None:
        """:raise OSError: EINVAL if nothing of it is enabled"""
        self._switch_off(index)
        self._forget(index)

    def _switch_off(self, index: int) -> None:
        try:
            self._to_kernel(IrqSet(IRQ_SET_OFF, index, 0, 0), ())
        except OSError as error:
            if error.errno != errno.EINVAL or index not in self._enabled:
                raise
            # It was enabled, and isn't: a predecessor was killed just after it did this.

    def _unmask_by(self, request: IrqSet, eventfds: Sequence[int]) -> None:
        """An eventfd that unmasks INTx; the kernel takes no other while it has one."""
        try:
            self._to_kernel(request, eventfds)
        except OSError as error:
            if error.errno != errno.EBUSY or self._unmasked_by_eventfd:
                raise
            # We have set none: a predecessor was killed just after it did.
            self._to_kernel(request, ())
            self._to_kernel(request, eventfds)
        self._unmasked_by_eventfd = bool(eventfds)

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
                new.append(Kept(os.dup(fd) if fd >= 0 else -1))
                undo.callback(new[-1].close)
            if not kept or end <= len(kept):
                self._to_kernel(request, eventfds)
            else:
                before = [event.fd for event in kept]
                wanted = [*before, *[-1] * (end - len(kept))]
                wanted[request.start : end] = fds
                self._replace(request.index, before, wanted)
            undo.pop_all()  # from here on nothing fails
        kept += [Kept() for _ in range(end - len(kept))]
        for at, event in enumerate(new, request.start):
            kept[at].close()
            kept[at] = event
        self._kept[request.index] = kept

    def _replace(self, index: int, before: list[int], after: list[int]) -> None:
        """Replace one set of eventfds by a larger one; by itself again if that can't be had."""
        self._switch_off(index)
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
                new = Kept(eventfd.duplicate(eventfds[0]) if eventfds else -1)
                self._client_request.close()
                self._client_request = new
            elif request.data != b"\0":
                self._signal_client()

    def forward_request(self) -> None:
        """The kernel has signalled `request`: tell the client too."""
        eventfd.take(self.request)
        with self._lock:
            self._signal_client()

    def _signal_client(self) -> None:
        if self._client_request.fd >= 0:
            eventfd.signal(self._client_request.fd)

    def forget_client(self) -> None:
        """Its eventfd for the device request goes; the kernel's others go with `off`."""
        self._set_request(IrqSet(IRQ_SET_OFF, PciIrq.REQ, 0, 0), ())

    def _forget(self, index: int) -> None:
        self._enabled.discard(index)
        if index == PciIrq.INTX:
            self._unmasked_by_eventfd = False
        for event in self._kept.pop(index, ()):
            event.close()

    def close(self) -> None:
        """Let go of all eventfds; the kernel lets go of its own with the device."""
        for index in (*self._kept, *self._enabled):
            self._forget(index)
        self._request.close()
        self._client_request.close()
