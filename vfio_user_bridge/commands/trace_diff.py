# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge trace diff`: where two recordings part."""

from __future__ import annotations

import argparse
from pathlib import Path

from .recordings import STATUSES, add_part, add_registers, chosen, comparing, complain_of_end

NAME = "diff"
SUMMARY = "compare what two recordings have, but for its times"
EPILOG = f"""\
Prints what differs as diff -u does. Behind @@ are the times where it begins, in
seconds from the beginning of either recording.

{STATUSES}"""


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="a recording")
    parser.add_argument("other", metavar="OTHER", type=Path, help="another")
    parser.add_argument(
        "--no-data", action="store_true", help="don't compare what was read and written, only where"
    )
    add_registers(parser)
    add_part(parser)


def run(options: argparse.Namespace) -> int:
    from vfio_user_bridge.terminal import show
    from vfio_user_bridge.trace.diff import Comparison
    from vfio_user_bridge.trace.names import Names
    from vfio_user_bridge.trace.reader import Trace
    from vfio_user_bridge.trace.text import title
    from vfio_user_bridge.trace.unified import unified

    wanted = chosen(options)
    with comparing(), Trace(options.file) as one, Trace(options.other) as other:
        comparison = Comparison(
            *(filter(wanted.passes, trace) for trace in (one, other)), data=not options.no_data
        )
        for trace in (one, other):
            if trace.truncated:
                complain_of_end(trace.path)
        names = Names(one.header, options.registers)
        lines = list(unified(comparison, names))
        if lines:
            show((f"--- {title(one.header)}", f"+++ {title(other.header)}", *lines))
    return 1 if lines else 0
