# SPDX-License-Identifier: BSD-3-Clause
"""What the commands of `trace` have in common: which recording, and which part of it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import complain

if TYPE_CHECKING:
    from vfio_user_bridge.trace.filters import Filter


#: of those that compare
STATUSES = """\
Exit status: 0 no difference, 1 there is one, 2 it can't be told.
"""


def add_recording(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="the recording")
    add_registers(parser)
    add_part(parser)


def add_registers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--registers",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="names of the device's registers, in TOML; repeat it for more files",
    )


def add_part(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--command",
        metavar="KINDS",
        help="only these, comma-separated: read, write, irqs, map, unmap, reset, client",
    )
    parser.add_argument(
        "--region",
        metavar="REGION",
        action="append",
        default=[],
        help="only accesses to bar0 to bar5, rom, config, vga, or a region's number;"
        " repeat it for more",
    )
    parser.add_argument(
        "--offset",
        metavar="FROM[-TO]",
        help="only accesses that touch these offsets, such as 0x1000-0x1fff",
    )
    parser.add_argument("--since", metavar="SECONDS", help="only from this time on")
    parser.add_argument("--until", metavar="SECONDS", help="only up to this time")


def chosen(options: argparse.Namespace) -> Filter:
    """Which records are wanted."""
    from vfio_user_bridge.trace.filters import parse

    return parse(
        commands=options.command,
        regions=options.region,
        offsets=options.offset,
        since=options.since,
        until=options.until,
    )


def complain_of_end(path: Path) -> None:
    """A trace's reader found none."""
    complain(f"{path}: the end is missing: the recording goes on, or it was cut off")


@contextmanager
def comparing() -> Iterator[None]:
    """What can't be compared is no difference: it has diff(1)'s exit status."""
    from vfio_user_bridge.errors import BridgeError

    try:
        yield
    except BridgeError as error:
        error.exit_status = 2
        raise
