# SPDX-License-Identifier: BSD-3-Clause
"""Waiting for what comes by itself."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 60.0  # seconds


def until(holds: Callable[[], bool], seen: Callable[[], object] = lambda: "") -> None:
    """Return once it holds; fail after PATIENCE with what is *seen* instead."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, seen()
        time.sleep(0.2)
