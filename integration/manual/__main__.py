# SPDX-License-Identifier: BSD-3-Clause
"""Writes them all, and removes the pages of commands that are no more."""

from __future__ import annotations

from pathlib import Path

from integration.manual import completion, page
from integration.manual.command import Command
from vfio_user_bridge.cli import build_parser
from vfio_user_bridge.commands import PROGRAM

SUMMARY = "give a virtual machine a physical PCI device over a UNIX socket"
CHECKOUT = Path(__file__).resolve().parents[2]


def files() -> dict[str, str]:
    """What is in each file, by its path in the checkout."""
    program = Command((), build_parser(), SUMMARY)
    pages = {f"docs/man/{name}": text for name, text in page.pages(program).items()}
    return pages | {
        f"integration/bash/{PROGRAM}": completion.bash(program),
        f"integration/zsh/_{PROGRAM}": completion.zsh(program),
    }


def main() -> None:
    made = files()
    for old in (CHECKOUT / "docs/man").iterdir():
        if f"docs/man/{old.name}" not in made:
            old.unlink()
    for path, text in made.items():
        (CHECKOUT / path).write_text(text)


if __name__ == "__main__":
    main()
