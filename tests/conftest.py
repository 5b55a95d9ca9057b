# SPDX-License-Identifier: BSD-3-Clause
"""Every test here leaves this process with the file descriptors that it found.

hypothesis tries the same examples each time, however slow the machine is.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from .descriptors import open_descriptors

settings.register_profile("the same each time", derandomize=True, deadline=None)
settings.load_profile("the same each time")


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    before = open_descriptors()
    yield
    if open_descriptors() != before:
        gc.collect()  # what pytest keeps of a failure, and reference cycles of the standard library
        after = open_descriptors()
        assert after.keys() <= before.keys(), f"left open: {after.items() - before.items()}"


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """Where every user may look: pytest's own folders are one's own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
