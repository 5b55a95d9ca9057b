# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge trace show`: a line for each record."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "show"
SUMMARY = "print what was asked of the device, a line each"


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="the recording")


def run(options: argparse.Namespace) -> None:
    from vfio_user_bridge.trace.reader import Trace

    with Trace(options.file) as trace:
        for record in trace:
            print(record)
