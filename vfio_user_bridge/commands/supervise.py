# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge supervise`: `serve`, and again when it fails."""

from __future__ import annotations

import argparse
import math

NAME = "supervise"
SUMMARY = "run serve, and again when it fails, with what it had open"
DESCRIPTION = """\
Run `serve`, and if it is killed or fails, at once run it again, which goes on
where the former was: guests don't notice. What systemd does for a unit with a
file descriptor store is done here where there is no systemd, as in a container,
whose process 1 this can be. Once `upgrade` has replaced the bridge, the new one
is looked after.

It ends with the bridge's exit status when that has ended by itself (0), or has
failed before it was ever ready. SIGTERM and SIGINT end the bridge, and then
this.
"""
EPILOG = """\
examples:
  vfio-user-bridge supervise serve 0000:01:10.1 --socket-path /run/nic.sock

environment:
  LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES
      what was passed in is passed on, at each start; --fd and --group-fd of
      `serve` don't fit that
  NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID
      a service manager of our own is told what the bridge tells us
"""

#: as FileDescriptorStoreMax= may be, by systemd's own bound
FDSTORE_MAX = 4096


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--watchdog",
        metavar="SECONDS",
        type=_seconds,
        default=0.0,
        help="kill a bridge that was ready and gives no sign of life for so long; 0: never"
        " (default: 0)",
    )
    parser.add_argument(
        "--fdstore-max",
        metavar="COUNT",
        type=_count,
        default=FDSTORE_MAX,
        help=f"how many descriptors are kept for a bridge at most (default: {FDSTORE_MAX})",
    )
    parser.add_argument("command", choices=("serve",), help="what is run")
    parser.add_argument(
        "arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="what `serve` is told"
    )


def run(options: argparse.Namespace) -> int:
    import os
    import sys

    from vfio_user_bridge import log
    from vfio_user_bridge.errors import UsageError
    from vfio_user_bridge.handover.supervisor import Supervisor

    # The next one has what was passed to us at other numbers.
    if {word.partition("=")[0] for word in options.arguments} & {"--fd", "--group-fd"}:
        raise UsageError(
            "supervise passes sockets and groups on by LISTEN_FDS, not by --fd or --group-fd"
        )
    log.set_up("info")
    # The interpreter and the program, as they were called.
    program = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    command = [sys.executable, *program, options.command, *options.arguments]
    supervisor = Supervisor(
        command, os.environ, most=options.fdstore_max, watchdog=options.watchdog
    )
    return supervisor.run()


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of descriptors")
    return int(text)
