# SPDX-License-Identifier: BSD-3-Clause
"""The log of a server, on stderr."""

from __future__ import annotations

import logging

#: from all to little
LEVELS = ("debug", "info", "warning", "error")


def set_up(level: str) -> None:
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    logging.raiseExceptions = False  # a log that can't be written, on a full disk, is no defect


def level() -> str:
    return logging.getLevelName(logging.getLogger().level).lower()


def set_level(level: str) -> None:
    """From now on."""
    logging.getLogger().setLevel(level.upper())
