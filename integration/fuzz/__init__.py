# SPDX-License-Identifier: BSD-3-Clause
"""Fuzzing: what the bridge does with bytes that nobody wrote, bred from those that QEMU sends.

A target is a module with a context manager `target`, which gives a function of one input that
raises if the target's property doesn't hold. None of them needs atheris: only breeding does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

TARGETS = ("protocol", "transport", "session")

#: has a folder for each target: what QEMU sent, and each input that ever broke a property
CORPUS = Path(__file__).parent / "corpus"


@contextmanager
def target(name: str) -> Iterator[Callable[[bytes], None]]:
    """The target *name*, which imports what it tests only now."""
    with import_module(f"{__name__}.{name}").target() as run:
        yield run
