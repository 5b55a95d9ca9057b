# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge libvirt-xml`: a libvirt domain on the bridge."""

from __future__ import annotations

import argparse
from pathlib import Path

from vfio_user_bridge.errors import BridgeError

from . import complain

NAME = "libvirt-xml"
SUMMARY = "print a libvirt domain whose PCI devices are on sockets"
DESCRIPTION = """\
Print XML for libvirt's virsh define: a domain whose PCI host devices come over
sockets, with shared guest RAM and at the same addresses in the guest. What of
their settings can't come along is named on standard error.

The hook script /usr/share/vfio-user-bridge/libvirt/hook.py binds and serves the
devices when libvirt starts the domain.
"""


def add_to(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--domain",
        metavar="FILE",
        type=Path,
        help="the domain, as virsh dumpxml --inactive prints it, with its <hostdev> elements",
    )
    what.add_argument(
        "--device",
        metavar="SOCKET",
        type=Path,
        help="print just the elements that a domain needs for the device behind SOCKET",
    )
    parser.add_argument(
        "--socket-dir",
        metavar="DIR",
        type=Path,
        default=Path("/run/vfio-user-bridge"),
        help="where the devices have their sockets, each as ADDRESS.sock (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> None:
    from vfio_user_bridge.libvirt.domain import bridged, pieces

    if options.device:
        print(pieces(options.device), end="")
        return
    try:
        text = options.domain.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise BridgeError(f"can't read {options.domain}: {reason}") from None
    try:
        done = bridged(text, options.socket_dir.absolute())
    except BridgeError as error:
        raise type(error)(f"{options.domain}: {error}") from None
    print(done.text, end="")
    for line in done.lost:
        complain(line)
