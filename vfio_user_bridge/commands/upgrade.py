# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge upgrade`: another version takes over from a running bridge."""

from __future__ import annotations

import argparse

from .control import add_control

NAME = "upgrade"
SUMMARY = "replace a running bridge by this version, under its guests"
DESCRIPTION = """\
Start this version with the arguments of the bridge that runs, and have it take
over: devices, sockets, clients and all that is known of them. Guests notice
nothing; a request of theirs waits for a moment. If this version can't take
over, the bridge that runs goes on, and it is said why.

The log goes where that of the old one went. Under systemd it is the unit's
reload: systemctl reload vfio-user-bridge@ADDRESS.service
"""


def add_to(parser: argparse.ArgumentParser) -> None:
    add_control(parser)


def run(options: argparse.Namespace) -> None:
    from vfio_user_bridge.handover.start import upgrade

    print(upgrade(options.control))
