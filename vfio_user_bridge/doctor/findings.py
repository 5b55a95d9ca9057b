# SPDX-License-Identifier: BSD-3-Clause
"""What a check has seen, and what mends it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"  # it can be served, but for what the text says
    PROBLEM = "problem"  # it can't


@dataclass(frozen=True, slots=True)
class Finding:
    """One of them. The fields are those of ``doctor --json``: add to them, don't rename any.

    *text* is a line: what was seen. If that isn't ok, *advice* says what to do, and *command* is
    the line for root's shell that does it; either may be empty. *check* is one of
    `doctor.HOST_CHECKS` or `doctor.DEVICE_CHECKS`, and *device* the PCI address that it is about.
    """

    level: Level
    text: str
    advice: str = ""
    command: str = ""
    check: str = ""
    device: str | None = None


def ok(text: str) -> Finding:
    return Finding(Level.OK, text)


def warning(text: str, advice: str = "", command: str = "") -> Finding:
    return Finding(Level.WARNING, text, advice, command)


def problem(text: str, advice: str = "", command: str = "") -> Finding:
    return Finding(Level.PROBLEM, text, advice, command)
