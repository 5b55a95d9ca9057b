# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge trace show`: a line for each record."""

from __future__ import annotations

import argparse

from .recordings import add_recording, chosen, complain_of_end

NAME = "show"
SUMMARY = "print what was asked of the device, a line each"
EPILOG = """\
A line says when, in seconds from the beginning; how long the device took; what
it was. Values are hexadecimal, of 1, 2, 4 or 8 bytes as a little-endian
number, and fields of registers are told unless they are 0.
"""


def add_to(parser: argparse.ArgumentParser) -> None:
    add_recording(parser)
    parser.add_argument("--json", action="store_true", help="an object a line, for programs")


def run(options: argparse.Namespace) -> None:
    from vfio_user_bridge.terminal import show
    from vfio_user_bridge.trace import objects, text
    from vfio_user_bridge.trace.names import Names
    from vfio_user_bridge.trace.reader import Trace

    wanted = chosen(options)
    with Trace(options.file) as trace:
        names = Names(trace.header, options.registers)
        records = (record for record in trace if wanted.passes(record))
        if options.json:
            show(objects.lines(trace.header, records, names))
        else:
            show(text.lines(trace.header, records, names))
        if trace.truncated:
            complain_of_end(options.file)
