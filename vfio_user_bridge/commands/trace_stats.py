# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge trace stats`: what a recording comes to."""

from __future__ import annotations

import argparse

from .recordings import add_recording, chosen, complain_of_end

NAME = "stats"
SUMMARY = "count what was asked of the device: where, how often, how long it took"

TOP = 20


def add_to(parser: argparse.ArgumentParser) -> None:
    add_recording(parser)
    parser.add_argument(
        "--top",
        metavar="N",
        type=_count,
        default=TOP,
        help=f"how many offsets to show, those first that were accessed most (default: {TOP})",
    )
    parser.add_argument("--json", action="store_true", help="one object, for programs")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of offsets")
    return int(text[:9])


def run(options: argparse.Namespace) -> None:
    import json

    from vfio_user_bridge.terminal import show
    from vfio_user_bridge.trace.names import Names
    from vfio_user_bridge.trace.reader import Trace
    from vfio_user_bridge.trace.stats import Stats
    from vfio_user_bridge.trace.stats_text import as_object, as_text

    wanted, stats = chosen(options), Stats()
    with Trace(options.file) as trace:
        names = Names(trace.header, options.registers)
        stats.add_all(record for record in trace if wanted.passes(record))
    if options.json:
        print(json.dumps(as_object(trace.header, stats, names, options.top), indent=2))
    else:
        show(as_text(trace.header, stats, names, options.top))
    if trace.truncated:
        complain_of_end(options.file)
