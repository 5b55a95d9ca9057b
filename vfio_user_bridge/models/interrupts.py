# SPDX-License-Identifier: BSD-3-Clause
"""Interrupts of a model: eventfds of the client, under the rules of VFIO_DEVICE_SET_IRQS.

What is allowed when, and which errno says that it isn't, is as in the kernel's vfio_pci_intrs.c. A
count of 0 means, as checked before, that the client is done with this kind.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Mapping, Sequence
from contextlib import suppress
from threading import Lock, Thread
from typing import Any

from vfio_user_bridge import eventfd
from vfio_user_bridge.device import IrqFlags, Keep, PciIrq, Take
from vfio_user_bridge.eventfd import Kept
from vfio_user_bridge.messages import IrqInfo, IrqSet, IrqSetFlags
from vfio_user_bridge.protocol import refuse

_ENABLE = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_TRIGGER

_INFO = {
    PciIrq.INTX: (1, IrqFlags.EVENTFD | IrqFlags.MASKABLE | IrqFlags.AUTOMASKED),
    PciIrq.MSI: (1, IrqFlags.EVENTFD | IrqFlags.NORESIZE),
    PciIrq.REQ: (1, IrqFlags.EVENTFD | IrqFlags.NORESIZE),
}


class Interrupts:
    """INTx, one MSI vector, and the request to give the device back, which is never made."""

    def __init__(self) -> None:
        self.intx = Line()
        self.msi = Vector()
        self._request = Vector()
        self._all: tuple[Line | Vector, ...] = (self.intx, self.msi, self._request)

    def info(self, index: int) -> IrqInfo:
        count, flags = _INFO.get(PciIrq(index), (0, 0))
        return IrqInfo(index, flags, count)

    def set_irqs(self, request: IrqSet, eventfds: Sequence[int]) -> None:
        """:raise OSError: EINVAL, ENOTTY: VFIO's answers to what makes no sense now, or ever"""
        eventfd_given = eventfds[0] if eventfds else None
        if request.index == PciIrq.REQ:
            self._request.set_irqs(request, eventfd_given)
        elif request.index == PciIrq.INTX and not self.msi.enabled:
            self.intx.set_irqs(request, eventfd_given)
        elif request.index == PciIrq.MSI and not self.intx.enabled:
            self.msi.set_irqs(request, eventfd_given)
        else:
            raise refuse(errno.EINVAL, f"no interrupt {request.index}, or the other kind is in use")

    def save(self, keep: Keep) -> list[dict[str, Any]]:
        return [each.save(keep) for each in self._all]

    def restore(self, saved: Sequence[Mapping[str, Any]], take: Take) -> None:
        for each, state in zip(self._all, saved, strict=True):
            each.restore(state, take)

    def go_on(self) -> None:
        """After `restore`: there may be threads."""
        self.intx.go_on()

    def disable(self) -> None:
        """Forget every eventfd."""
        for each in self._all:
            each.disable()

    def close(self) -> None:
        self.disable()
        self.intx.close()


class Vector:
    """An interrupt that is a message: what is signalled while nobody listens is lost."""

    def __init__(self) -> None:
        self.enabled = False
        self._trigger = Kept()

    def save(self, keep: Keep) -> dict[str, Any]:
        return {"enabled": self.enabled, "trigger": self._trigger.save(keep)}

    def restore(self, saved: Mapping[str, Any], take: Take) -> None:
        self.enabled, self._trigger = saved["enabled"], Kept.restore(saved["trigger"], take)

    def set_irqs(self, request: IrqSet, fd: int | None) -> None:
        if not request.flags & IrqSetFlags.ACTION_TRIGGER:
            raise refuse(errno.ENOTTY, "this interrupt can't be masked")
        if request.flags & IrqSetFlags.DATA_EVENTFD:
            trigger = _kept(fd)
            self.disable()
            self.enabled, self._trigger = True, trigger
        elif not self.enabled:
            raise refuse(errno.EINVAL, "this interrupt isn't enabled")
        elif not request.count:
            self.disable()
        elif _is_meant(request):
            self.notify()

    def notify(self) -> None:
        if self._trigger.fd >= 0:
            eventfd.signal(self._trigger.fd)

    def disable(self) -> None:
        self.enabled = False
        self._trigger.close()


class Line:
    """INTx: as long as the device holds the line, the client hears of it once for each unmask.

    Signalling masks ("automasked"): the client's next word on the line is UNMASK, by message or
    by an eventfd, which a thread waits for.
    """

    def __init__(self) -> None:
        self.enabled = False
        self._held = False
        self._masked = False
        self._trigger = Kept()
        self._lock = Lock()  # between the device's thread and that of `_watch`
        self._watch = _Watch(self)

    def save(self, keep: Keep) -> dict[str, Any]:
        with self._lock:
            return {
                "enabled": self.enabled,
                "held": self._held,
                "masked": self._masked,
                "trigger": self._trigger.save(keep),
                "unmask": self._watch.save(keep),
            }

    def restore(self, saved: Mapping[str, Any], take: Take) -> None:
        self.enabled, self._held = saved["enabled"], saved["held"]
        self._trigger = Kept.restore(saved["trigger"], take)
        unmask = Kept.restore(saved["unmask"], take)
        # An eventfd may have unmasked it since that was saved, without a trace: so that counts as
        # done. To tell of a line twice does no harm; not to tell of it stops the guest's driver.
        self._masked = saved["masked"] and unmask.fd < 0
        self._watch.restore(unmask)
        self._update()

    def go_on(self) -> None:
        self._watch.go_on()

    def set_irqs(self, request: IrqSet, fd: int | None) -> None:
        flags = request.flags
        if flags == _ENABLE:
            self._enable(fd)
        elif not self.enabled:
            raise refuse(errno.EINVAL, "INTx isn't enabled")
        elif not request.count:
            self.disable()
        elif flags & IrqSetFlags.DATA_EVENTFD:
            if flags & IrqSetFlags.ACTION_MASK:
                raise refuse(errno.ENOTTY, "INTx can't be masked by an eventfd")
            self._unmask_by(fd)
        elif _is_meant(request):
            if flags & IrqSetFlags.ACTION_MASK:
                self._update(masked=True)
            elif flags & IrqSetFlags.ACTION_UNMASK:
                self._update(masked=False)
            elif self._trigger.fd >= 0:
                eventfd.signal(self._trigger.fd)

    def hold(self, held: bool) -> None:
        """The device holds the line, or lets it go."""
        self._update(held=held)

    def disable(self) -> None:
        self._unmask_by(None)
        self.enabled = False
        self._masked = False
        self._trigger.close()

    def _enable(self, fd: int | None) -> None:
        trigger = _kept(fd)
        with self._lock:
            self._trigger.close()
            self.enabled, self._trigger = True, trigger
        self._update()

    def close(self) -> None:
        self.disable()
        self._watch.stop()

    def _unmask_by(self, fd: int | None) -> None:
        self._watch.watch(_kept(fd))

    def unmask(self) -> None:
        self._update(masked=False)

    def _update(self, *, held: bool | None = None, masked: bool | None = None) -> None:
        with self._lock:
            self._held = self._held if held is None else held
            self._masked = self._masked if masked is None else masked
            if self._held and not self._masked and self._trigger.fd >= 0:
                self._masked = True
                eventfd.signal(self._trigger.fd)


class _Watch(Thread):
    """Unmasks a line whenever the client signals an eventfd, until `stop`.

    It is one thread for all clients: to start one takes memory.
    """

    def __init__(self, line: Line) -> None:
        super().__init__(name="intx-unmask", daemon=True)
        self._line = line
        self._event = Kept()
        self._lock = Lock()  # hold it to use `_event`
        self._ended = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def run(self) -> None:
        while not self._ended:
            poll = select.poll()
            poll.register(self._bell, select.POLLIN)
            if (fd := self._event.fd) >= 0:
                poll.register(fd, select.POLLIN)
            with suppress(OSError):  # no way to tell; the next message meets the same
                poll.poll()
                eventfd.take(self._bell)
                with self._lock:
                    if self._event.fd >= 0 and eventfd.take(self._event.fd):
                        self._line.unmask()

    def save(self, keep: Keep) -> str | None:
        return self._event.save(keep)

    def restore(self, event: Kept) -> None:
        """To be watched once we `go_on`."""
        self._event = event

    def go_on(self) -> None:
        if self._event.fd >= 0:
            self.start()

    def watch(self, event: Kept) -> None:
        """Go over to *event*: once this returns, no other one unmasks."""
        with self._lock:
            self._event.close()
            self._event = event
        if event.fd >= 0 and self.ident is None:
            self.start()
        with suppress(OSError):  # it rings already
            os.eventfd_write(self._bell, 1)

    def stop(self) -> None:
        self._ended = True
        self.watch(Kept())
        if self.ident is not None:
            self.join()
        os.close(self._bell)


def _is_meant(request: IrqSet) -> bool:
    """Whether a request without eventfds is about its one interrupt: DATA_BOOL may say no."""
    return not request.flags & IrqSetFlags.DATA_BOOL or request.data[0] != 0


def _kept(fd: int | None) -> Kept:
    return Kept() if fd is None else Kept(eventfd.duplicate(fd))
