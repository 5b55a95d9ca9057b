# SPDX-License-Identifier: BSD-3-Clause
"""A service manager's socket that has no room, since nobody reads it."""

from __future__ import annotations

import contextlib
import socket


def fill(address: str) -> None:
    """As much as the socket at *address* takes."""
    with contextlib.suppress(BlockingIOError):
        while True:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(b"STATUS=full", address)
