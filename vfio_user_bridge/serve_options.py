# SPDX-License-Identifier: BSD-3-Clause
"""What `vfio-user-bridge serve` can be told."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

#: microseconds, in which a CPU that sleeps would hardly be woken and asleep again
POLL = 100
LONGEST_POLL = 10_000


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "devices", metavar="DEVICE", nargs="+", help="PCI address (0000:01:10.1), or model:edu"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--socket-path", metavar="PATH", type=Path, help="the socket to make")
    where.add_argument("--fd", metavar="N", type=int, help="a listening socket, passed in")
    where.add_argument(
        "--socket-dir", metavar="DIR", type=Path, help="where each device gets NAME.sock"
    )
    parser.add_argument(
        "--group-fd",
        metavar="N",
        type=int,
        action="append",
        default=[],
        help="an open /dev/vfio/GROUP, passed in; repeat it for each group",
    )
    parser.add_argument(
        "--socket-mode",
        metavar="OCTAL",
        type=_mode,
        default=0o600,
        help="permissions of socket files (default: 0600)",
    )
    parser.add_argument(
        "--allow-uid",
        metavar="USER",
        action="append",
        default=[],
        help="only clients of this user, by name or number; repeat it for more",
    )
    parser.add_argument(
        "--allow-gid",
        metavar="GROUP",
        action="append",
        default=[],
        help="clients that are in this group, likewise",
    )
    parser.add_argument(
        "--user",
        metavar="USER",
        help="who to be once devices and sockets are open; sockets are this user's",
    )
    parser.add_argument(
        "--confine",
        choices=("auto", "all", "off"),
        default="auto",
        help="privileges, files and system calls that serving doesn't take are given up as far as"
        " the host can do it; or it is an error if it can't; or not at all (default: auto)",
    )
    parser.add_argument(
        "--engine",
        choices=("native", "libvfio-user"),
        default="native",
        help="who answers clients: the bridge itself, or libvfio-user, if installed"
        " (default: native)",
    )
    parser.add_argument(
        "--bar-mmap",
        choices=("auto", "off"),
        default="auto",
        help="whether clients map BARs, or have each access go through the bridge (default: auto)",
    )
    parser.add_argument(
        "--on-disconnect",
        choices=("reset", "keep"),
        default="reset",
        help="what becomes of the device's state when its client goes (default: reset)",
    )
    parser.add_argument(
        "--control",
        metavar="PATH",
        type=Path,
        help="a socket for `status`, to be made for the user of this process alone",
    )
    parser.add_argument(
        "--limit",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="what a client may have at most, see below; may be given several times",
    )
    parser.add_argument(
        "--poll",
        metavar="MICROSECONDS",
        type=_microseconds,
        default=POLL / 1e6,
        help="how long a CPU looks for a client's next access before it sleeps, if the one before"
        f" came as soon; 0: it doesn't (default: {POLL})",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="how much goes to stderr (default: info)",
    )


def _microseconds(text: str) -> float:
    """In seconds."""
    try:
        microseconds = float(text)
    except ValueError:
        microseconds = math.nan
    if not 0 <= microseconds <= LONGEST_POLL:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of microseconds from 0 to {LONGEST_POLL}"
        )
    return microseconds / 1e6


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise argparse.ArgumentTypeError(f"{text!r} is not an octal mode like 0660")
    return mode
