# SPDX-License-Identifier: BSD-3-Clause
"""Where built things are kept, and how one comes to be there whole or not at all.

An artefact is a file or folder named NAME-FINGERPRINT. The fingerprint is that of its recipe, so
a changed recipe builds anew. It is built under a temporary name and renamed into place; whatever
carries the final name is whole. One that a week has not used goes when its successor is built.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from integration.progress import LoggedStep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


KEPT = 7 * 24 * 3600.0  # seconds: branches with different recipes are built once, not in turns


def root() -> Path:
    """Return the cache's folder: $VFIO_USER_BRIDGE_CACHE, else ~/.cache/vfio-user-bridge."""
    chosen = os.environ.get("VFIO_USER_BRIDGE_CACHE")
    path = Path(chosen) if chosen else Path.home() / ".cache" / "vfio-user-bridge"
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def artefact(
    name: str, what: str, recipe: object, build: Callable[[Path, LoggedStep], None]
) -> Path:
    """Return the path of artefact `name`, built first unless it is there already.

    :param what: what building it does, in the operator's words.
    :param recipe: all that decides the result; its `repr()` is what the fingerprint is taken of.
    :param build: makes the artefact at the path it is given, running commands through the step.
    :raise StepError: a command failed. Nothing half-built is left under the final name.
    """
    fingerprint = hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]
    path = root() / f"{name}-{fingerprint}"
    if _used(path):
        return path
    with _locked(root() / f"{name}.lock", what):
        if _used(path):  # whoever held the lock built it
            return path
        for other in root().iterdir():
            if re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{12}}(\.part)?", other.name):
                idle = time.time() - other.stat().st_mtime
                if other.suffix == ".part" or idle > KEPT:
                    _remove(other)
        log = root() / f"{name}.log"
        part = path.with_name(f"{path.name}.part")
        with LoggedStep(what, log) as step:
            build(part, step)
        part.rename(path)
        _used(path)
    return path


def _used(path: Path) -> bool:
    """Note the time at which the artefact was used, as its mtime; return whether it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(path)
        return True
    return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextlib.contextmanager
def _locked(path: Path, what: str) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"  {what}: another run is at it, waiting\n")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
