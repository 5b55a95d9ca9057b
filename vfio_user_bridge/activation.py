# SPDX-License-Identifier: BSD-3-Clause
"""What systemd passes at start (sd_listen_fds(3)): sockets it listens on, files it opened or kept.

They are told apart by their kind, not by FileDescriptorName=: what isn't a socket must be an IOMMU
group's node, from OpenFile=. Only what a predecessor stored goes by the name that it gave it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field

from .errors import BridgeError
from .handover.names import PREFIX

#: systemd's first descriptor (SD_LISTEN_FDS_START)
LISTEN_FDS_START = 3


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


def listen_fds(environment: MutableMapping[str, str]) -> list[tuple[str, int]]:
    """The descriptors that *environment* says were passed to this process, with their names: "" if
    one has none. A second call finds nothing.

    :raise BridgeError: how many isn't a number
    """
    process, count, names = (
        environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    )
    if process != str(os.getpid()):
        return []
    if not count.isdecimal():
        raise BridgeError(f"LISTEN_FDS={count} is no number: it is systemd's to set; unset it")
    fds = range(LISTEN_FDS_START, LISTEN_FDS_START + int(count))
    # From the end: those of socket units come first, and are named after the unit, which may have
    # colons. So has the list, between names.
    called = names.split(":")[::-1] + [""] * len(fds)
    return list(zip(called, reversed(fds), strict=False))[::-1]


def passed() -> Passed:
    """What was passed to this process. A second call finds nothing.

    :raise BridgeError: the environment and the descriptors contradict each other
    """
    named = listen_fds(os.environ)
    kept = {name.removeprefix(PREFIX): fd for name, fd in named if name.startswith(PREFIX)}
    others = {fd: _is_socket(fd) for name, fd in named if not name.startswith(PREFIX)}
    sockets, files = (tuple(fd for fd in others if others[fd] == kind) for kind in (True, False))
    return Passed(sockets, files, kept)


def _is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        raise BridgeError(
            f"LISTEN_FDS promises file descriptor {fd}, which isn't open: pass it, or unset that"
        ) from None
