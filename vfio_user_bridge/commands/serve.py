# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge serve`: devices on sockets, until told to stop."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from vfio_user_bridge import limits, log

NAME = "serve"
SUMMARY = "offer devices on sockets, until told to stop"
EPILOG = f"""\
examples:
  vfio-user-bridge serve 0000:01:10.1 --socket-path /run/nic.sock
  vfio-user-bridge serve 01:10.1 01:10.2 --socket-dir /run/bridge
      makes /run/bridge/0000:01:10.1.sock and /run/bridge/0000:01:10.2.sock

Started by systemd it takes the sockets and IOMMU groups passed in. Sockets are
matched by the names of their files (0000:01:10.1.sock), else by order.

Prints a line for each device when its socket accepts connections. SIGTERM and
SIGINT end it: the device is reset, socket files are removed.

limits, for each client:
{limits.described()}"""

#: What a manager may run the program with that knows it by its JSON file alone (the
#: specification's "Backend Program Conventions", and those of vhost-user).
CONVENTIONS = ("--socket-path", "--fd", "--print-capabilities")

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
        help="a socket for `status` and `control`, for the user of this process alone",
    )
    parser.add_argument(
        "--record",
        metavar="PATH",
        type=Path,
        help="a new file for what is asked of the device and what it answers, see `trace`; with"
        " several devices a folder, where each gets NAME.trace",
    )
    add_record_limit(parser, "--record-limit")
    parser.add_argument(
        "--metrics",
        metavar="ADDRESS:PORT|PATH",
        help="where Prometheus finds metrics: on a TCP port, such as 127.0.0.1:9105, or on a socket"
        " to be made for the user of this process alone",
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
        choices=log.LEVELS,
        default="info",
        help="how much goes to stderr (default: info)",
    )
    parser.add_argument(
        "--print-capabilities",
        action=_PrintCapabilities,
        nargs=0,
        help="say in JSON what this backend can do, and exit",
    )


def add_record_limit(parser: argparse.ArgumentParser, option: str) -> None:
    parser.add_argument(
        option,
        metavar="SIZE",
        type=_size,
        default=limits.RECORD_LIMIT,
        help="of a recording at most, in bytes, or with K, M, G or T (default: 256M)",
    )


def run(options: argparse.Namespace) -> None:
    from vfio_user_bridge.serve import serve

    serve(options)


class _PrintCapabilities(argparse.Action):
    """As vhost-user backends do: the features are the options beyond those that all have."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import json

        common = ("--help", *CONVENTIONS)
        actions = parser._actions  # noqa: SLF001 - argparse has no other way to ask
        names = [name for action in actions for name in action.option_strings]
        options = [name for name in names if name.startswith("--") and name not in common]
        features = [name.removeprefix("--") for name in options]
        # The type is VFIO_DEVICE_API_PCI_STRING of linux/vfio.h.
        print(json.dumps({"type": "vfio-pci", "features": features}, indent=2))
        parser.exit()


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


def _size(text: str) -> int:
    """In bytes."""
    size = limits.whole(text)
    if not limits.LEAST_RECORD_LIMIT <= size < 1 << 63:  # NaN isn't
        raise argparse.ArgumentTypeError(f"{text!r} is not a size from 64K on, like 256M")
    return int(size)


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise argparse.ArgumentTypeError(f"{text!r} is not an octal mode like 0660")
    return mode
