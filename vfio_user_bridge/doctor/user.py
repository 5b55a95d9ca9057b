# SPDX-License-Identifier: BSD-3-Clause
"""Who looks, and what that user may use."""

from __future__ import annotations

import os
import pwd
from pathlib import Path


def name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())  # a container's


def may(path: Path, mode: int) -> bool:
    """Whether it may use *path* so: ``os.R_OK | os.W_OK``."""
    return os.access(path, mode, effective_ids=True)
