# SPDX-License-Identifier: BSD-3-Clause
"""Landlock: this process, and what it starts, opens no file beyond what is said here.

``linux/landlock.h`` in Python. Its three system calls have no function in libc and the same numbers
on every architecture (they are younger than the common table of system calls). Descriptors that are
open already are not concerned.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from enum import IntFlag
from pathlib import Path
from struct import Struct

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1 << 0
_RULE_PATH_BENEATH = 1

#: handled_access_fs, handled_access_net, scoped: struct landlock_ruleset_attr
_RULESET = Struct("=QQQ")
#: allowed_access, parent_fd: struct landlock_path_beneath_attr, which is packed
_PATH_BENEATH = Struct("=Qi")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Access(IntFlag):
    """``LANDLOCK_ACCESS_FS_*``."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_DIR = 1 << 7
    MAKE_SOCK = 1 << 9


#: for a file that isn't a folder, the others are EINVAL
FILE = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE

#: How many rights each version of the kernel's ABI knows, from the first on.
_FS_RIGHTS = (13, 14, 15, 15, 16)
_NET_SINCE, _NET = 4, 0b11  # to bind and to connect TCP sockets
_SCOPE_SINCE, _SCOPE_SIGNAL = 6, 1 << 1  # signals to whoever isn't under this rule set too


def abi() -> int:
    """The version that this kernel has.

    :raise OSError: as of `restrict`
    """
    return _call(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)


def restrict(allowed: Iterable[tuple[Path, Access]]) -> int:
    """Leave this thread, and those it starts, what is *allowed* beneath the paths, and no more.

    All that this kernel can forbid is forbidden otherwise, TCP and signals to others too. A path
    may be there twice, and have the rights of both; one that doesn't exist is passed over. Needs
    no_new_privs or CAP_SYS_ADMIN.

    Gives the ABI's version.

    :raise OSError: ENOSYS or EOPNOTSUPP if the kernel has no Landlock or it is off, EPERM where a
        sandbox around us forbids it
    """
    version = abi()
    known = (1 << _FS_RIGHTS[min(version, len(_FS_RIGHTS)) - 1]) - 1
    scope = _SCOPE_SIGNAL if version >= _SCOPE_SINCE else 0
    attributes = _RULESET.pack(known, _NET if version >= _NET_SINCE else 0, scope)
    # An older kernel takes a longer structure if what it doesn't know is 0.
    rules = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path, access in allowed:
            _allow(rules, path, access & known)
        _call(_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)
    return version


def _allow(rules: int, path: Path, access: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not path.is_dir():
            access &= FILE
        _call(_ADD_RULE, rules, _RULE_PATH_BENEATH, _PATH_BENEATH.pack(access, fd), 0)
    finally:
        os.close(fd)


def _call(number: int, *arguments: int | bytes | None) -> int:
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
