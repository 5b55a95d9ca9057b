# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge trace plot`: a picture of a recording."""

from __future__ import annotations

import argparse
from pathlib import Path

from vfio_user_bridge.errors import UsageError

from .recordings import add_recording, chosen, complain_of_end

NAME = "plot"
SUMMARY = "draw what was asked of the device over time, and how long it took"


def add_to(parser: argparse.ArgumentParser) -> None:
    add_recording(parser)
    parser.add_argument(
        "--output",
        metavar="PICTURE",
        type=Path,
        required=True,
        help="the file to make, which ends in .png, .svg or .pdf",
    )


def run(options: argparse.Namespace) -> None:
    from vfio_user_bridge.trace.marks import Marks
    from vfio_user_bridge.trace.names import Names
    from vfio_user_bridge.trace.plot import FORMATS, draw
    from vfio_user_bridge.trace.reader import Trace

    if options.output.suffix not in FORMATS:
        raise UsageError(f"--output: {options.output} must end in one of {', '.join(FORMATS)}")
    wanted, marks = chosen(options), Marks()
    with Trace(options.file) as trace:
        names = Names(trace.header, options.registers)
        marks.add_all(record for record in trace if wanted.passes(record))
    draw(trace.header, marks, names, options.output)
    if trace.truncated:
        complain_of_end(options.file)
