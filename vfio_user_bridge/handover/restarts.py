# SPDX-License-Identifier: BSD-3-Clause
"""Whether a process that has ended is started again, and how soon.

How it ended is its exit status, or as a negative number the signal that killed it; None if it was
another's child.
"""

from __future__ import annotations

import signal

#: how long one must live for the next to be started without a pause, in seconds
_LONG = 1.0
_FIRST_PAUSE = 0.1


class Restarts:
    """:param longest_pause: before a start, in seconds"""

    def __init__(self, longest_pause: float) -> None:
        self._longest_pause = longest_pause
        self._pause = 0.0

    def after(self, end: int | None, lived: float, *, was_ready: bool) -> float | None:
        """How long to wait, in seconds; None if that was the end.

        :param lived: how long it did, in seconds
        :param was_ready: whether it ever was, or one before it. If not, a failure is the end:
            nothing is lost, and it would fail again. If so, there are guests to go on with, and
            none is: Python's own status is 2 where a package that is being upgraded lacks a file
        """
        if end == 0 or (end is not None and end > 0 and not was_ready):
            return None
        pause = 0.0 if lived >= _LONG else self._pause
        self._pause = min(max(_FIRST_PAUSE, 2 * pause), self._longest_pause)
        return pause


def exit_status(end: int) -> int:
    """As shells have it."""
    return end if end >= 0 else 128 - end


def described(end: int | None) -> str:
    if end is None:
        return "is gone"
    if end >= 0:
        return f"ended with status {end}"
    names = {number.value: number.name for number in signal.Signals}
    return f"was killed by {names.get(-end, -end)}"
