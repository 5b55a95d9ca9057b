# SPDX-License-Identifier: BSD-3-Clause
"""The sockets that clients come to: made here, or inherited as descriptors."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from .errors import BridgeError


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket, and its file if that is ours to remove."""

    socket: socket.socket
    path: Path | None = None
    inode: int = 0

    @property
    def address(self) -> str:
        """As ss(8) writes it: a path, or @name for one in the abstract namespace."""
        address = self.socket.getsockname()
        if isinstance(address, bytes):
            return "@" + address[1:].decode(errors="replace")
        return str(address)

    def close(self) -> None:
        """Stop listening. A file that another server has put in place of ours stays."""
        self.socket.close()
        if self.path:
            with contextlib.suppress(OSError):
                if self.path.stat().st_ino == self.inode:
                    self.path.unlink()


def listen(path: Path, mode: int) -> Listener:
    """Listen on a new socket file with permission bits *mode*; a stale one is replaced.

    :raise BridgeError: a live server has it, it is no socket, or it can't be made
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o777 & ~mode)  # from the first moment, not by chmod() after
    try:
        _remove_stale(path)
        sock.bind(str(path))
        sock.listen()
        return Listener(sock, path, path.stat().st_ino)
    except OSError as error:
        sock.close()
        raise BridgeError(
            f"can't listen on {path}: {error.strerror or error}; choose another path, or make its"
            " folder"
        ) from None
    except BridgeError:
        sock.close()
        raise
    finally:
        os.umask(mask)


def _remove_stale(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise BridgeError(f"{path} exists and is no socket: remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a server that is busy, or stopped, must not stop us
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # it has more clients at the door than it can take
        raise BridgeError(f"another server is listening on {path}: stop it or choose another")


def inherited(fd: int) -> Listener:
    """The listening socket that came as descriptor *fd*.

    :raise BridgeError: it is none
    """
    try:
        sock = socket.socket(fileno=fd)
    except (OSError, ValueError):
        raise BridgeError(
            f"file descriptor {fd} is no socket: pass a listening UNIX stream socket"
        ) from None
    if (
        sock.family != socket.AF_UNIX
        or sock.type != socket.SOCK_STREAM
        or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        sock.detach()
        raise BridgeError(f"file descriptor {fd} is no listening UNIX stream socket: pass one")
    sock.set_inheritable(False)
    return Listener(sock)
