# SPDX-License-Identifier: BSD-3-Clause
"""The sockets that clients come to: made here, or inherited as descriptors.

Devices have UNIX sockets. What is for others to look at may have a TCP port.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from .errors import BridgeError, UsageError


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket, and its file if that is ours to remove."""

    socket: socket.socket
    path: Path | None = None
    inode: int = 0

    @property
    def address(self) -> str:
        """As ss(8) writes it: a path, @name in the abstract namespace, or ADDRESS:PORT."""
        address = self.socket.getsockname()
        if isinstance(address, bytes):
            return "@" + address[1:].decode(errors="replace")
        if isinstance(address, tuple):
            host, port = address[:2]
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return os.fsencode(address).decode(errors="replace")

    def owned(self, inode: int = 0) -> Listener:
        """This one, whose file is ours to remove from now on, if it has one.

        :param inode: of that file; 0 if it isn't known
        """
        path = Path(self.address)
        try:
            found = path.stat().st_ino
        except OSError:
            return self  # in the abstract namespace, or on a TCP port
        # Else another server has put its own there.
        return Listener(self.socket, path, found) if inode in (0, found) else self

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


def listen_at(where: str, mode: int) -> Listener:
    """Listen on a TCP port, such as 127.0.0.1:9105 or [::1]:9105, or as `listen` does.

    :raise UsageError: it is neither a path nor an address with a port
    :raise BridgeError: it can't be had
    """
    if "/" in where or ":" not in where:
        return listen(Path(where), mode)
    host, _, port = where.rpartition(":")
    family, numeric = socket.AF_INET, host
    if host.startswith("[") and host.endswith("]"):
        family, numeric = socket.AF_INET6, host[1:-1]
    try:
        socket.inet_pton(family, numeric)
        number = int(port)
        if not 0 <= number < 1 << 16:
            raise ValueError
    except (OSError, ValueError):
        raise UsageError(
            f"can't listen on {where!r}: give an address and a port, such as 127.0.0.1:9105 or"
            " [::1]:9105, or a path"
        ) from None
    try:
        return Listener(socket.create_server((numeric, number), family=family))
    except OSError as error:
        reason = os.strerror(error.errno or 0)  # create_server() has a text of its own
        raise BridgeError(f"can't listen on {where}: {reason}; choose another port") from None


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
