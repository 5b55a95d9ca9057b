# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge status`: what a running bridge does."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "status"
SUMMARY = "show what a running bridge does"


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--control",
        metavar="PATH",
        type=Path,
        required=True,
        help="the control socket that serve was told to make",
    )
    parser.add_argument("--json", action="store_true", help="all that is known, for programs")


def run(options: argparse.Namespace) -> None:
    import json

    from vfio_user_bridge.control import ask
    from vfio_user_bridge.status import as_text

    answer = ask(options.control, "status")
    print(json.dumps(answer, indent=2) if options.json else as_text(answer))
