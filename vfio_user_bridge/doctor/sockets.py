# SPDX-License-Identifier: BSD-3-Clause
"""Whether sockets can be made in the folder for them, and are safe there."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator

from vfio_user_bridge.sockets import socket_name

from .findings import Finding, ok, problem, warning
from .host import Host
from .user import may, name

#: bytes of sun_path, without the NUL: unix(7)
LONGEST = 107
A_NAME = "0000:01:10.1"


def folder(host: Host) -> Iterator[Finding]:
    """The one that is to be `serve --socket-dir`."""
    path = host.socket_dir
    if path is None:
        return
    shown = shlex.quote(str(path))
    try:
        status = path.stat()
    except OSError as error:
        make = f"install --directory --owner {name()} {shown}"
        absent = isinstance(error, FileNotFoundError)
        yield problem(f"{path}: {error.strerror}", command=make if absent else "")
        return
    length = len(os.fsencode(path / socket_name(A_NAME)))
    if not stat.S_ISDIR(status.st_mode):
        yield problem(f"{path} is no folder", "choose another")
    elif not may(path, os.W_OK | os.X_OK):
        yield problem(f"{name()} may not make sockets in {path}", command=f"chown {name()} {shown}")
    elif status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        yield problem(
            f"everybody may write to {path}, and put a socket in the place of ours",
            command=f"chmod go-w {shown}",
        )
    elif status.st_uid not in (0, os.geteuid()):
        yield warning(
            f"{path} belongs to another user, who can put a socket in the place of ours",
            command=f"chown {name()} {shown}",
        )
    elif status.st_mode & stat.S_IWGRP and not status.st_mode & stat.S_ISVTX:
        yield warning(
            f"a group may write to {path}, and put a socket in the place of ours",
            command=f"chmod g-w {shown}",
        )
    elif length > LONGEST:
        yield problem(
            f"{path} is too long a path: sockets in it have names of {length} bytes, {LONGEST} are"
            " the most",
            "choose a shorter one, below /run",
        )
    else:
        yield ok(f"{name()} can make sockets in {path}")
