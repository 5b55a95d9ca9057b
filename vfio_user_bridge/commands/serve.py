# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge serve`: devices on sockets, until told to stop."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from vfio_user_bridge import limits, log

NAME = "serve"
SUMMARY = "offer devices on sockets, until told to stop"
DESCRIPTION = """\
Offer each DEVICE on a socket, in the foreground, until SIGTERM or SIGINT. When
a socket accepts connections, a line "NAME ready on PATH" goes to standard
output; the log goes to standard error.

A device has one client at a time. When a client goes, its interrupts and its
memory are taken back, the device is reset, and the next client is welcome. The
functions of one IOMMU group must be served by one process and used by one
virtual machine.

The sockets are made, or passed in; without an option that says where, they are
those that systemd passes.
"""
EPILOG = f"""\
examples:
  vfio-user-bridge serve 0000:01:10.1 --socket-path /run/nic.sock
  vfio-user-bridge serve 01:10.1 01:10.2 --socket-dir /run/bridge
      makes /run/bridge/0000:01:10.1.sock and /run/bridge/0000:01:10.2.sock

limits, for each client:
{limits.described()}
environment:
  LISTEN_FDS, LISTEN_PID
      what systemd passes, see sd_listen_fds(3): sockets, matched with devices
      by the names of their files (0000:01:10.1.sock), else by order; and files,
      which are IOMMU groups as with --group-fd
  NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID
      where a service manager is told of readiness, clients and signs of life,
      see sd_notify(3)
  FDSTORE, LISTEN_FDNAMES
      how many descriptors the manager keeps (FileDescriptorStoreMax=): with it,
      a bridge that is killed is gone on with by the next, under its guests
"""

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
    where.add_argument(
        "--socket-path",
        metavar="PATH",
        type=Path,
        help="the socket to make, for one device; a stale one is replaced",
    )
    where.add_argument(
        "--fd", metavar="N", type=int, help="a listening UNIX stream socket, passed in"
    )
    where.add_argument(
        "--socket-dir",
        metavar="DIR",
        type=Path,
        help="where each device gets NAME.sock, such as 0000:01:10.1.sock",
    )
    parser.add_argument(
        "--group-fd",
        metavar="N",
        type=int,
        action="append",
        default=[],
        help="an open /dev/vfio/GROUP, passed in, so that no right on the node is needed; repeat"
        " it for each group",
    )
    parser.add_argument(
        "--socket-mode",
        metavar="OCTAL",
        type=_mode,
        default=0o600,
        help="permissions of the sockets that are made; who can connect can use the device"
        " (default: 0600)",
    )
    parser.add_argument(
        "--allow-uid",
        metavar="USER",
        action="append",
        default=[],
        help="only clients of this user, by name or number; root isn't let in for being root;"
        " repeat it for more",
    )
    parser.add_argument(
        "--allow-gid",
        metavar="GROUP",
        action="append",
        default=[],
        help="only clients that are in this group, likewise; with --allow-uid too, who matches"
        " either is let in",
    )
    parser.add_argument(
        "--user",
        metavar="USER",
        help="who to be once devices and sockets are open, which takes root; the sockets that are"
        " made are this user's, who also removes them, if the directory is writable",
    )
    parser.add_argument(
        "--confine",
        choices=("auto", "all", "off"),
        default="auto",
        help="what serving doesn't take is given up before a client may speak: capabilities, new"
        " privileges, core dumps, files (by Landlock), system calls (by seccomp, which takes"
        " python3-seccomp or pyseccomp); auto: as far as the host can, and the log says how far;"
        " all: or it is an error; off: for those who look for defects (default: auto)",
    )
    parser.add_argument(
        "--engine",
        choices=("native", "libvfio-user"),
        default="native",
        help="who answers clients: the bridge itself, or the reference C library, if it is"
        " installed (default: native)",
    )
    parser.add_argument(
        "--bar-mmap",
        choices=("auto", "off"),
        default="auto",
        help="whether clients map BARs; off: each access goes through the bridge, which is slower,"
        " and clients don't get the VFIO device descriptor (default: auto)",
    )
    parser.add_argument(
        "--policy",
        metavar="FILE",
        type=Path,
        help="rules that deny, force or log a guest's accesses, in TOML",
    )
    parser.add_argument(
        "--on-disconnect",
        choices=("reset", "keep"),
        default="reset",
        help="what becomes of the device when its client goes; keep: it isn't reset, but bus"
        " mastering and interrupts go off all the same (default: reset)",
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
        help="what a client may have at most, see below; sizes may end in K, M, G or T; repeat it"
        " for more",
    )
    parser.add_argument(
        "--poll",
        metavar="MICROSECONDS",
        type=_microseconds,
        default=POLL / 1e6,
        help="how long a CPU looks for a client's next access before it sleeps, if the one before"
        f" came as soon; 0: it doesn't, as where both have one CPU between them (default: {POLL})",
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
        help="print what this backend can do, as JSON: its type, and its features, which are the"
        " names of its optional options; and exit",
    )


def add_record_limit(parser: argparse.ArgumentParser, option: str) -> None:
    parser.add_argument(
        option,
        metavar="SIZE",
        type=_size,
        default=limits.RECORD_LIMIT,
        help="how large a recording may grow, in bytes or with K, M, G or T (default: 256M)",
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
