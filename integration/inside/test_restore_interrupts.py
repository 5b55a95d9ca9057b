# SPDX-License-Identifier: BSD-3-Clause
"""Interrupts of a process that is killed: they arrive, and another sets them up further."""

from __future__ import annotations

import errno
import os

import pytest

from integration import devices
from vfio_user_bridge.device import PciIrq, PciRegion
from vfio_user_bridge.hostdev import HostDevice
from vfio_user_bridge.kernel import vfio
from vfio_user_bridge.messages import IrqSet

from . import edu
from .bridge import fired
from .interrupters import E1000e
from .predecessor import (  # noqa: F401 - fixtures too
    OFF,
    Driver,
    bound,
    nothing_stays,
    on,
    signalled,
    successors,
)
from .test_interrupts import EVENTFD, SOON, UNMASK, eventfds

pytestmark = pytest.mark.usefixtures("nothing_stays")


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_interrupts_that_it_was_killed_over_are_asked_for_again(*, done: bool) -> None:
    """Whether the kernel had done it or not, it comes out right, and the client sees no error."""
    with eventfds(8) as events:
        set_two = [(on(PciIrq.MSI, 0, 2), events[:2])]
        for before, again in (
            ([], (on(PciIrq.MSI, 0, 2), events[:2])),
            (set_two, (on(PciIrq.MSI, 1, 1), events[2:3])),
            (set_two, (on(PciIrq.MSI, 0, 8), events)),
            (set_two, (IrqSet(OFF, PciIrq.MSI, 0, 0), [])),
        ):

            def use(opened: list[HostDevice]) -> None:
                for request, fds in before:  # noqa: B023
                    opened[0].set_irqs(request, fds)

            def after(opened: list[HostDevice]) -> None:
                if done:
                    opened[0].set_irqs(*again)  # noqa: B023

            with successors(devices.XHCI_MSI, use=use, after=after) as (device,):
                device.set_irqs(*again)
                request, fds = again
                for vector, event in enumerate(fds, request.start):
                    assert signalled(device, PciIrq.MSI, vector, events) == [events.index(event)]
                if not fds:
                    with pytest.raises(OSError, match=r".") as refused:
                        device.set_irqs(*again)
                    assert refused.value.errno == errno.EINVAL


def test_off_and_not_on_again_is_on_again() -> None:
    """The worst moment of a set that grows."""
    with eventfds(4) as events:

        def after(opened: list[HostDevice]) -> None:
            off = IrqSet(OFF, PciIrq.MSI, 0, 0)
            vfio.set_irqs(opened[0].region_fd(PciRegion.CONFIG), off.pack())

        with successors(
            devices.XHCI_MSI,
            use=lambda opened: opened[0].set_irqs(on(PciIrq.MSI, 0, 2), events[:2]),
            after=after,
        ) as (device,):
            device.set_irqs(on(PciIrq.MSI, 2, 2), events[2:])
            for vector in range(4):
                assert signalled(device, PciIrq.MSI, vector, events) == [vector]


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_intx_and_what_unmasks_it(*, done: bool) -> None:
    with eventfds(2) as (event, unmask):

        def use(opened: list[HostDevice]) -> None:
            Driver(opened[0]).enable()
            opened[0].set_irqs(on(PciIrq.INTX, 0, 1), [event])
            Driver(opened[0]).write(edu.BAR, edu.RAISE, 4, 1)
            assert fired(event)  # and is masked

        def set_unmask(opened: list[HostDevice]) -> None:
            opened[0].set_irqs(IrqSet(EVENTFD | UNMASK, PciIrq.INTX, 0, 1), [unmask])

        with successors(devices.EDU, use=use, after=set_unmask if done else bool) as opened:
            assert not fired(event, SOON)
            set_unmask(opened)
            os.eventfd_write(unmask, 1)
            assert fired(event), "the line is held"
            Driver(opened[0]).write(edu.BAR, edu.ACKNOWLEDGE, 4, 1)


def test_msix_of_a_network_card() -> None:
    with eventfds(5) as events:

        def use(opened: list[HostDevice]) -> None:
            driver = Driver(opened[0])
            driver.enable()
            opened[0].set_irqs(on(PciIrq.MSIX, 0, 4), events[:4])
            ivar = sum((E1000e.IVAR_VALID | n) << 4 * n for n in range(5))
            driver.write(0, E1000e.IVAR, 4, ivar)
            driver.write(0, E1000e.EIAC, 4, E1000e.CAUSES)

        with successors(devices.E1000E, use=use) as (device,):
            driver = Driver(device)

            def fires(vector: int) -> bool:
                cause = 1 << E1000e.FIRST_CAUSE + vector
                driver.write(0, E1000e.IMS, 4, cause)
                driver.write(0, E1000e.ICS, 4, cause)
                done = fired(events[vector])
                driver.write(0, E1000e.IMC, 4, cause)
                return done

            assert [fires(vector) for vector in range(4)] == [True] * 4
            device.set_irqs(on(PciIrq.MSIX, 4, 1), events[4:])
            assert fires(4)
            device.set_irqs(IrqSet(OFF, PciIrq.MSIX, 0, 0), [])


def test_the_host_can_still_have_it_back() -> None:
    """What it said while nobody was there is there to be heard."""
    with eventfds(1) as (event,):

        def use(opened: list[HostDevice]) -> None:
            opened[0].set_irqs(on(PciIrq.REQ, 0, 1), [event])

        def ask(opened: list[HostDevice]) -> None:
            test = IrqSet(OFF, PciIrq.REQ, 0, 1)
            vfio.set_irqs(opened[0].region_fd(PciRegion.CONFIG), test.pack())

        with successors(devices.EDU, use=use, after=ask) as (device,):
            assert not fired(event, 0)
            assert device.host_request is not None
            device.heed_host_request()
            assert fired(event, 0)
