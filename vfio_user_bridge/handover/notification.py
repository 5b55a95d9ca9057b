# SPDX-License-Identifier: BSD-3-Clause
"""What processes tell their service manager (sd_notify(3)), received: the manager's end."""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct

#: systemd's bound too: PIPE_BUF
_LONGEST = 4096
_MOST_FDS = 253  # SCM_MAX_FD
_UCRED = Struct("=iII")  # pid, uid, gid: struct ucred
_ROOM = socket.CMSG_SPACE(_UCRED.size) + socket.CMSG_SPACE(_MOST_FDS * array("i").itemsize)


@dataclass(frozen=True, slots=True)
class Notification:
    """One message: who sent it, as the kernel knows; its variables; its descriptors.

    :param whole: nothing of it was lost, for want of room or of descriptors
    """

    pid: int
    uid: int
    variables: Mapping[str, str]
    fds: tuple[int, ...]
    whole: bool

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


class NotifySocket:
    """A socket in the abstract namespace, so that it takes no folder that can be written to."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind("")  # the kernel chooses a name: "Autobind feature" of unix(7)

    @property
    def address(self) -> str:
        """For NOTIFY_SOCKET."""
        name: bytes = self.socket.getsockname()
        return "@" + name[1:].decode()

    def receive(self) -> Notification | None:
        """The next message, if there is one; its descriptors are the caller's to close."""
        try:
            text, ancillary, flags, _ = self.socket.recvmsg(
                _LONGEST, _ROOM, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        pid, uid, fds = 0, 0, array("i")
        for _, kind, content in ancillary:
            if kind == socket.SCM_CREDENTIALS:
                pid, uid, _ = _UCRED.unpack(content)
            elif kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) // fds.itemsize * fds.itemsize])
        lines = (line.partition("=") for line in text.decode(errors="replace").split("\n"))
        variables = {name: value for name, _, value in lines}
        lost = flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        return Notification(pid, uid, variables, tuple(fds), not lost)

    def close(self) -> None:
        self.socket.close()
