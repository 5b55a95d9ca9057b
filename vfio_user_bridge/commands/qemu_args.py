# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge qemu-args`: how QEMU connects."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "qemu-args"
SUMMARY = "print the QEMU arguments that connect to sockets"
DESCRIPTION = """\
Print the QEMU arguments that connect a virtual machine to the device behind
each SOCKET, quoted for a shell. Guest RAM is shared memory, without which
devices can't reach it.
"""
EPILOG = """\
examples:
  eval qemu-system-x86_64 -accel kvm disk.qcow2 \\
    "$(vfio-user-bridge qemu-args /run/nic.sock)"
"""


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sockets", metavar="SOCKET", nargs="+", type=Path, help="where serve offers a device"
    )
    parser.add_argument(
        "--memory", metavar="SIZE", default="4G", help="guest RAM, such as 512M (default: 4G)"
    )


def run(options: argparse.Namespace) -> None:
    import shlex

    from vfio_user_bridge.qemu import arguments

    print(shlex.join(arguments(options.sockets, options.memory)))
