# SPDX-License-Identifier: BSD-3-Clause
"""The C library libvfio-user, through ctypes: its API as libvfio-user.h has it, and no more.

Names, prototypes and numbers are the header's own, written as C has them, so that a compiler can
compare them with it (tests/test_libvfio_user.py). The library is loaded when it is first asked for.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import logging
import os
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from vfio_user_bridge.errors import BridgeError

log = logging.getLogger(__name__)

#: names the library's file, where it isn't installed
VARIABLE = "LIBVFIO_USER"

VFU_TRANS_SOCK = 0
VFU_DEV_TYPE_PCI = 0
VFU_PCI_TYPE_CONVENTIONAL = 0
VFU_PCI_TYPE_EXPRESS = 3
VFU_PCI_DEV_CFG_REGION_IDX = 7
VFU_PCI_DEV_NUM_REGIONS = 9
VFU_REGION_FLAG_READ = 1 << 0
VFU_REGION_FLAG_WRITE = 1 << 1
VFU_REGION_FLAG_MEM = 1 << 2
VFU_REGION_FLAG_ALWAYS_CB = 1 << 3
VFU_DEV_INTX_IRQ = 0
VFU_DEV_MSI_IRQ = 1
VFU_DEV_MSIX_IRQ = 2
VFU_DEV_ERR_IRQ = 3
VFU_DEV_REQ_IRQ = 4
VFU_DEV_NUM_IRQS = 5
VFU_RESET_DEVICE = 0
VFU_RESET_LOST_CONN = 1
VFU_RESET_PCI_FLR = 2
LIBVFIO_USER_FLAG_ATTACH_NB = 1 << 0

# Of syslog.h, which vfu_setup_log speaks.
LOG_INFO = 6
LOG_DEBUG = 7


class Iovec(ctypes.Structure):
    """``struct iovec``; as an area of a region, *base* is an offset in it, in bytes."""

    _fields_ = (("iov_base", ctypes.c_void_p), ("iov_len", ctypes.c_size_t))


class DmaInfo(ctypes.Structure):
    """``vfu_dma_info_t``: a DMA map; all but *iova* is 0 where the library hasn't mapped it."""

    _fields_ = (
        ("iova", Iovec),
        ("vaddr", ctypes.c_void_p),
        ("mapping", Iovec),
        ("page_size", ctypes.c_size_t),
        ("prot", ctypes.c_uint32),
    )


#: C's types, as prototypes write them
TYPES: dict[str, Any] = {
    "void": None,
    "bool": ctypes.c_bool,
    "int": ctypes.c_int,
    "size_t": ctypes.c_size_t,
    "ssize_t": ctypes.c_ssize_t,
    "loff_t": ctypes.c_int64,
    "uint16_t": ctypes.c_uint16,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "void *": ctypes.c_void_p,
    "char *": ctypes.c_void_p,  # a buffer: c_char_p would be copied, up to its first NUL
    "const char *": ctypes.c_char_p,
    "struct iovec *": ctypes.POINTER(Iovec),
    "vfu_ctx_t *": ctypes.c_void_p,
    "vfu_dma_info_t *": ctypes.POINTER(DmaInfo),
    "vfu_trans_t": ctypes.c_uint,
    "vfu_dev_type_t": ctypes.c_uint,
    "vfu_pci_type_t": ctypes.c_uint,
    "vfu_reset_type_t": ctypes.c_uint,
    "enum vfu_dev_irq_type": ctypes.c_uint,
}

CALLBACKS = {
    "vfu_log_fn_t": "void (vfu_ctx_t *, int, const char *)",
    "vfu_region_access_cb_t": "ssize_t (vfu_ctx_t *, char *, size_t, loff_t, bool)",
    "vfu_reset_cb_t": "int (vfu_ctx_t *, vfu_reset_type_t)",
    "vfu_device_quiesce_cb_t": "int (vfu_ctx_t *)",
    "vfu_dma_register_cb_t": "void (vfu_ctx_t *, vfu_dma_info_t *)",
    "vfu_dma_unregister_cb_t": "void (vfu_ctx_t *, vfu_dma_info_t *)",
    "vfu_dev_irq_state_cb_t": "void (vfu_ctx_t *, uint32_t, uint32_t, bool)",
}

FUNCTIONS = {
    "vfu_create_ctx": "vfu_ctx_t * (vfu_trans_t, const char *, int, void *, vfu_dev_type_t)",
    "vfu_setup_log": "int (vfu_ctx_t *, vfu_log_fn_t *, int)",
    "vfu_pci_init": "int (vfu_ctx_t *, vfu_pci_type_t, int, int)",
    "vfu_setup_region": (
        "int (vfu_ctx_t *, int, size_t, vfu_region_access_cb_t *, int, struct iovec *, uint32_t,"
        " int, uint64_t)"
    ),
    "vfu_setup_device_nr_irqs": "int (vfu_ctx_t *, enum vfu_dev_irq_type, uint32_t)",
    "vfu_setup_irq_state_callback": (
        "int (vfu_ctx_t *, enum vfu_dev_irq_type, vfu_dev_irq_state_cb_t *)"
    ),
    "vfu_setup_device_dma": (
        "int (vfu_ctx_t *, size_t, vfu_dma_register_cb_t *, vfu_dma_unregister_cb_t *)"
    ),
    "vfu_setup_device_reset_cb": "int (vfu_ctx_t *, vfu_reset_cb_t *)",
    "vfu_setup_device_quiesce_cb": "void (vfu_ctx_t *, vfu_device_quiesce_cb_t *)",
    "vfu_device_quiesced": "int (vfu_ctx_t *, int)",
    "vfu_realize_ctx": "int (vfu_ctx_t *)",
    "vfu_attach_ctx": "int (vfu_ctx_t *)",
    "vfu_get_poll_fd": "int (vfu_ctx_t *)",
    "vfu_run_ctx": "int (vfu_ctx_t *)",
    "vfu_irq_trigger": "int (vfu_ctx_t *, uint32_t)",
    "vfu_destroy_ctx": "void (vfu_ctx_t *)",
}


def split(prototype: str) -> tuple[str, list[str]]:
    """The C types of a function's result and of its parameters."""
    found = re.fullmatch(r"(.+) \((.+)\)", prototype)
    assert found, prototype
    return found[1], found[2].split(", ")


for _name, _prototype in CALLBACKS.items():
    _result, _parameters = split(_prototype)
    TYPES[f"{_name} *"] = ctypes.CFUNCTYPE(
        TYPES[_result], *(TYPES[parameter] for parameter in _parameters), use_errno=True
    )


@cache
def load() -> ctypes.CDLL:
    """The library. Its functions raise `OSError` where C says -1 or NULL and sets errno.

    :raise BridgeError: there is none, or not one with this API
    """
    path = os.environ.get(VARIABLE) or ctypes.util.find_library("vfio-user")
    if not path:
        raise BridgeError(
            "libvfio-user isn't installed: build it from github.com/nutanix/libvfio-user and set"
            f" {VARIABLE} to the path of its .so, or use --engine native"
        )
    try:
        library = ctypes.CDLL(path, use_errno=True)
        for name, prototype in FUNCTIONS.items():
            function = getattr(library, name)
            result, parameters = split(prototype)
            function.restype = TYPES[result]
            function.argtypes = [TYPES[parameter] for parameter in parameters]
            function.errcheck = _check
    except (OSError, AttributeError) as error:
        raise BridgeError(
            f"{path} can't be used as libvfio-user: {error}; set {VARIABLE} to another, or use"
            " --engine native"
        ) from None
    return library


def _check(result: int | None, function: Any, _arguments: object) -> int | None:
    if result == -1 or (result is None and function.restype is ctypes.c_void_p):
        code = ctypes.get_errno()
        raise OSError(code, f"{function.__name__}: {os.strerror(code)}")
    return result


def callback(name: str, act: Callable[..., int | None]) -> Any:
    """The C callback *name* that calls *act* with all arguments but the context.

    An exception must not reach C: it becomes -1 and an errno where C can be told, and a line in the
    log in any case. Whoever hands a callback to the library keeps it for as long as that has it.
    """
    result, _ = split(CALLBACKS[name])
    failure, done = (None, None) if result == "void" else (-1, 0)

    def guarded(_context: int, *arguments: Any) -> int | None:
        try:
            return act(*arguments) or done
        except OSError as error:
            log.info("%s: %s", name, error.strerror or error)
            ctypes.set_errno(error.errno or errno.EIO)
        except Exception:
            log.exception("%s: a defect of the bridge, please report it", name)
            ctypes.set_errno(errno.EIO)
        return failure

    return TYPES[f"{name} *"](guarded)
