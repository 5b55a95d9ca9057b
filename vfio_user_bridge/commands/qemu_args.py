# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge qemu-args`: how QEMU connects."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "qemu-args"
SUMMARY = "print the QEMU arguments that connect to sockets"


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sockets", metavar="SOCKET", nargs="+", type=Path)
    parser.add_argument("--memory", metavar="SIZE", default="4G", help="guest RAM (default: 4G)")


def run(options: argparse.Namespace) -> None:
    import shlex

    from vfio_user_bridge.qemu import arguments

    print(shlex.join(arguments(options.sockets, options.memory)))
