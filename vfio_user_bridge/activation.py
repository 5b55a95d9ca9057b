# SPDX-License-Identifier: BSD-3-Clause
"""What systemd passes at start (sd_listen_fds(3)): sockets it listens on, files it opened or kept.

They are told apart by their kind, not by FileDescriptorName=: what isn't a socket must be an IOMMU
group's node, from OpenFile=. Only what a predecessor stored goes by the name that it gave it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import BridgeError
from .handover.names import PREFIX

#: systemd's first descriptor (SD_LISTEN_FDS_START)
_LISTEN_FDS_START = 3


@dataclass(frozen=True, slots=True)
class Passed:
    """Descriptors, in the order in which they were passed."""

    sockets: tuple[int, ...] = ()
    files: tuple[int, ...] = ()
    #: from the file descriptor store, by name
    kept: Mapping[str, int] = field(default_factory=dict)


def any_kept() -> bool:
    """Whether a predecessor has stored something. To be asked before `passed` is."""
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    return any(name.startswith(PREFIX) for name in names)


def passed() -> Passed:
    """What was passed to this process. A second call finds nothing.

    :raise BridgeError: the environment and the descriptors contradict each other
    """
    process, count, names = (
        os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    )
    if process != str(os.getpid()):
        return Passed()
    if not count.isdecimal():
        raise BridgeError(f"LISTEN_FDS={count} is no number: it is systemd's to set; unset it")
    fds = range(_LISTEN_FDS_START, _LISTEN_FDS_START + int(count))
    # From the end: those of socket units come first, and are named after the unit, which may have
    # colons. So has the list, between names.
    named = zip(reversed(fds), reversed(names.split(":")), strict=False)
    kept = {name.removeprefix(PREFIX): fd for fd, name in named if name.startswith(PREFIX)}
    sockets = tuple(fd for fd in fds if _is_socket(fd) and fd not in kept.values())
    files = tuple(fd for fd in fds if fd not in sockets and fd not in kept.values())
    return Passed(sockets, files, kept)


def _is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        raise BridgeError(
            f"LISTEN_FDS promises file descriptor {fd}, which isn't open: pass it, or unset that"
        ) from None
