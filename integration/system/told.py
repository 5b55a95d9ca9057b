# SPDX-License-Identifier: BSD-3-Clause
"""A service that does what a test tells it: ``told.py PATH`` executes what comes to that socket.

A connection brings Python and gets what that left in `answer`. `passed` has the descriptors that
the service manager gave, by name, in its order.
"""

import contextlib
import os
import socket
import sys
from pathlib import Path

NAMES = os.environ.get("LISTEN_FDNAMES", "").split(":")
passed: dict[str, list[int]] = {}
for fd, name in enumerate(NAMES, 3):  # SD_LISTEN_FDS_START
    passed.setdefault(name, []).append(fd)

answer: object = None


def notify(text: str, *fds: int) -> None:
    """A datagram to the service manager (sd_notify(3)), with descriptors."""
    address = os.environ.get("NOTIFY_SOCKET", "/run/systemd/notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        socket.send_fds(sock, [text.encode()], fds)


def store(name: str, *fds: int, more: str = "FDPOLL=0") -> None:
    notify(f"FDSTORE=1\nFDNAME={name}\n{more}", *fds)


def serve(path: str) -> None:
    """Never returns."""
    Path(path).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            with listener.accept()[0] as caller, contextlib.suppress(BrokenPipeError):
                exec(caller.makefile().read(), globals())  # nosec B102 - what it is for
                caller.sendall(repr(answer).encode())


if __name__ == "__main__":
    notify("READY=1")
    serve(sys.argv[1])
