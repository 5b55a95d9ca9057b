# SPDX-License-Identifier: BSD-3-Clause
"""The product as its users install it: a wheel."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from integration.progress import LoggedStep

CHECKOUT = Path(__file__).resolve().parent.parent
#: what is no source: setuptools would take modules from a build/ of long ago
LEFT_OUT = (".*", "build", "*.egg-info", "__pycache__")


def build(folder: Path, step: LoggedStep) -> Path:
    """Build the checkout's wheel in `folder`, and return its path.

    :raise StepError: pip failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "source")
        shutil.copytree(CHECKOUT, source, ignore=shutil.ignore_patterns(*LEFT_OUT))
        for old in folder.glob("*.whl"):
            old.unlink()
        step.run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, source)
    [wheel] = folder.glob("*.whl")
    return wheel
