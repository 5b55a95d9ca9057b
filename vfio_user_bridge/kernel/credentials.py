# SPDX-License-Identifier: BSD-3-Clause
"""What a process may do by who it is: its user, its capabilities, and those it could yet gain."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from struct import Struct

CAP_IPC_LOCK = 14
_LAST_CAP = 63  # that struct __user_cap_data_struct has room for

_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4

#: version, pid: struct __user_cap_header_struct
_CAP_HEADER = Struct("=Ii")
_CAP_VERSION_3 = 0x20080522
#: effective, permitted, inheritable, of capabilities 0 to 31, then of the others
_CAP_DATA = Struct("=6I")

_libc = ctypes.CDLL(None, use_errno=True)


def permitted() -> int:
    """The capabilities of this process, a bit for each."""
    data = ctypes.create_string_buffer(_CAP_DATA.size)
    _call(_libc.capget, _CAP_HEADER.pack(_CAP_VERSION_3, 0), data)
    words = _CAP_DATA.unpack(data.raw)
    return int(words[1] | words[4] << 32)


def has(capability: int) -> bool:
    return bool(permitted() >> capability & 1)


def become(uid: int, gid: int, groups: Iterable[int]) -> None:
    """Be another user from now on, with the capabilities of before.

    :raise PermissionError: this one may not, not being root
    """
    _prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups(list(groups))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def drop_capabilities(keep: Iterable[int] = ()) -> None:
    """Have none but those to *keep*, if they are there, and none to be gained ever after."""
    kept = sum(1 << capability for capability in keep)
    for capability in range(_LAST_CAP + 1):
        if kept >> capability & 1 or _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) != 1:
            continue
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            break  # without CAP_SETPCAP the bound stays; no_new_privs keeps it out of reach
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    before = permitted()
    kept &= before
    low, high = kept & 0xFFFF_FFFF, kept >> 32
    # Where there is nothing to drop, a sandbox that forbids capset() altogether is left in peace.
    if before:
        data = _CAP_DATA.pack(low, low, 0, high, high, 0)
        _call(_libc.capset, _CAP_HEADER.pack(_CAP_VERSION_3, 0), data)


def gain_nothing() -> None:
    """Programs that this process starts get no more than it has (no_new_privs)."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def hide_memory() -> None:
    """Neither a core file nor another process of the same user shows what is in memory."""
    _prctl(_PR_SET_DUMPABLE, 0)


def _prctl(option: int, value: int) -> None:
    _call(_libc.prctl, option, value, 0, 0, 0)


def _call(function: ctypes._NamedFuncPointer, *arguments: object) -> None:
    if function(*arguments) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
