# SPDX-License-Identifier: BSD-3-Clause
"""How long a socket waits, as SO_RCVTIMEO and SO_SNDTIMEO have it (socket(7))."""

from __future__ import annotations

from struct import Struct

_TIMEVAL = Struct("@ll")  # seconds, microseconds


def timeval(seconds: float) -> bytes:
    """*seconds* as setsockopt() takes them; 0: for ever."""
    return _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1_000_000))
