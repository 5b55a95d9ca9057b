# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge doctor`: whether this host can serve."""

from __future__ import annotations

import argparse
from pathlib import Path

from vfio_user_bridge.errors import BridgeError

NAME = "doctor"
SUMMARY = "check whether this host can serve, and say what mends it"
EPILOG = """\
Each line is ok, a warning (it works, but), or a problem (it doesn't). Below the
latter two is what mends it; a line that begins with # is for root's shell.
Nothing is changed. The exit status is 0 if there is no problem, 1 otherwise.

examples:
  vfio-user-bridge doctor                  the host, and what vfio-pci has
  vfio-user-bridge doctor 0000:01:10.1 --memory 8G
      whether that device can be given to a guest of 8 GiB
"""

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "devices", metavar="BDF", nargs="*", help="PCI addresses (default: all that vfio-pci has)"
    )
    parser.add_argument("--memory", metavar="SIZE", help="guest RAM that there must be room for")
    parser.add_argument(
        "--socket-dir", metavar="DIR", type=Path, help="where sockets are to be made"
    )
    parser.add_argument("--json", action="store_true", help="all that is known, for programs")


def run(options: argparse.Namespace) -> None:
    import json
    import os
    from dataclasses import asdict

    from vfio_user_bridge.doctor import examine
    from vfio_user_bridge.doctor.findings import Level
    from vfio_user_bridge.doctor.host import Host
    from vfio_user_bridge.kernel.pci import parse_bdf
    from vfio_user_bridge.qemu import memory_size
    from vfio_user_bridge.terminal import Styled, Text, show

    host = Host(
        path=os.environ.get("PATH", os.defpath),
        memory=memory_size(options.memory) if options.memory else None,
        socket_dir=options.socket_dir,
    )
    findings = list(examine(host, [parse_bdf(text) for text in options.devices]))
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        parts: list[Text] = []
        for finding in findings:
            level, command = finding.level, finding.command
            parts.append(Styled(f"{level:8} {finding.text}", _STYLES[level]))
            mends = (finding.advice, f"# {command}" if command else "")
            parts += [f"{'':9}{line}" for line in mends if line]
        show(parts)
    problems = sum(finding.level is Level.PROBLEM for finding in findings)
    if problems:
        count = "a problem" if problems == 1 else f"{problems} problems"
        raise BridgeError(f"this host can't serve as it is: {count}")
