# SPDX-License-Identifier: BSD-3-Clause
"""A Device as libvfio-user serves it to one client: what the library is told, and what it asks.

Config space is the device's own: with ALWAYS_CB, the library hands every access on.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from vfio_user_bridge.device import Device, PciIrq, RegionFlags
from vfio_user_bridge.messages import RegionInfo
from vfio_user_bridge.protocol import refuse
from vfio_user_bridge.sparse import mappable_areas

from . import library as vfu

log = logging.getLogger(__name__)

#: the types that vfu_irq_trigger serves; it has no way to signal the others
IRQS = (PciIrq.INTX, PciIrq.MSI, PciIrq.MSIX)


class Listener(Protocol):
    """Who hears of what isn't between the library and the device alone."""

    def written(self) -> None:
        """The device has done a write; its reply is still to come."""

    def masked(self, start: int, count: int, mask: bool) -> None:
        """The client has masked or unmasked INTx."""

    def mapped(self) -> None:
        """The library has accepted a DMA map."""

    def unmapped(self, iova: int) -> None:
        """The library forgets the DMA map that starts at *iova*."""


class Context:
    """A ``vfu_ctx_t``, realized; not thread-safe.

    :param path: where the library listens; nothing may be there yet
    :raise OSError: the library won't have it
    """

    def __init__(self, device: Device, path: Path, listener: Listener) -> None:
        self._library: Any = vfu.load()
        self._device = device
        self._listener = listener
        self._callbacks: list[Any] = []  # kept for C
        self._context: int = self._library.vfu_create_ctx(
            vfu.VFU_TRANS_SOCK,
            os.fsencode(path),
            vfu.LIBVFIO_USER_FLAG_ATTACH_NB,
            None,
            vfu.VFU_DEV_TYPE_PCI,
        )
        try:
            self._describe()
        except BaseException:
            self.destroy()
            raise

    def fileno(self) -> int:
        """The connection, once attached."""
        return int(self._library.vfu_get_poll_fd(self._context))

    def attach(self) -> None:
        """Accept a client that has connected already, and answer its VERSION.

        :raise OSError: it was refused, and told so unless what it said is no message
        """
        self._library.vfu_attach_ctx(self._context)

    def run(self) -> None:
        """Answer one message.

        :raise OSError: the conversation is over; ENOTCONN if the client has hung up
        """
        self._library.vfu_run_ctx(self._context)

    def trigger(self, subindex: int) -> None:
        """Signal the client's eventfd for this interrupt.

        :raise OSError: ENOENT if there is none
        """
        self._library.vfu_irq_trigger(self._context, subindex)

    def destroy(self) -> None:
        self._library.vfu_destroy_ctx(self._context)

    # ---- What the library is told -----------------------------------------------------------

    def _describe(self) -> None:
        library, context = self._library, self._context
        device, listener = self._device, self._listener
        level = vfu.LOG_DEBUG if log.isEnabledFor(logging.DEBUG) else vfu.LOG_INFO
        library.vfu_setup_log(context, self._callback("vfu_log_fn_t", self._log), level)
        info = device.info
        for index in range(min(info.num_regions, vfu.VFU_PCI_DEV_NUM_REGIONS)):
            self._describe_region(device.region_info(index))
        for index in range(vfu.VFU_DEV_NUM_IRQS):
            known = index in IRQS and index < info.num_irqs
            count = device.irq_info(index).count if known else 0
            library.vfu_setup_device_nr_irqs(context, index, count)
        library.vfu_setup_irq_state_callback(
            context,
            vfu.VFU_DEV_INTX_IRQ,
            self._callback("vfu_dev_irq_state_cb_t", listener.masked),
        )
        library.vfu_setup_device_dma(
            context,
            device.max_dma_maps,
            self._callback("vfu_dma_register_cb_t", lambda _info: listener.mapped()),
            self._callback(
                "vfu_dma_unregister_cb_t",
                lambda info: listener.unmapped(info[0].iova.iov_base or 0),
            ),
        )
        library.vfu_setup_device_reset_cb(context, self._callback("vfu_reset_cb_t", self._reset))
        library.vfu_realize_ctx(context)

    def _describe_region(self, region: RegionInfo) -> None:
        # No FLAG_MEM: it is for BARs in a config space that the library keeps itself.
        flags = region.flags & (vfu.VFU_REGION_FLAG_READ | vfu.VFU_REGION_FLAG_WRITE)
        if region.index == vfu.VFU_PCI_DEV_CFG_REGION_IDX:
            flags |= vfu.VFU_REGION_FLAG_ALWAYS_CB
            express = region.size > 256
            kind = vfu.VFU_PCI_TYPE_EXPRESS if express else vfu.VFU_PCI_TYPE_CONVENTIONAL
            self._library.vfu_pci_init(self._context, kind, 0, 0)
        if not region.size:
            return
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

    def _callback(self, name: str, act: Callable[..., int | None]) -> Any:
        made = vfu.callback(name, act)
        self._callbacks.append(made)
        return made

    # ---- What the library asks --------------------------------------------------------------

    def _access_to(self, region: RegionInfo) -> Callable[[int, int, int, bool], int]:
        index, device = region.index, self._device
        readable, writable = region.flags & RegionFlags.READ, region.flags & RegionFlags.WRITE

        def access(buffer: int, count: int, offset: int, is_write: bool) -> int:
            if is_write:
                if not writable:
                    raise refuse(errno.EINVAL, f"region {index} can't be written")
                device.region_write(index, offset, ctypes.string_at(buffer, count))
                self._listener.written()
                return count
            if not readable:
                raise refuse(errno.EINVAL, f"region {index} can't be read")
            data = device.region_read(index, offset, count)
            ctypes.memmove(buffer, data, min(len(data), count))
            return len(data)

        return access

    def _reset(self, reason: int) -> None:
        # When the connection is lost, whoever runs the context puts the device back.
        if reason != vfu.VFU_RESET_LOST_CONN:
            self._device.reset()

    def _log(self, level: int, text: bytes) -> None:
        # What the library calls errors are the client's, as are those that `Session` logs.
        python = logging.DEBUG if level >= vfu.LOG_DEBUG else logging.INFO
        log.log(python, "%s: libvfio-user: %s", self._device.name, text.decode(errors="replace"))
