# SPDX-License-Identifier: BSD-3-Clause
"""Take this host's libraries and programs into the test machine, with all that they load.

One is taken into every machine: libvfio-user, if $LIBVFIO_USER names it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from integration import tree
from integration.qemu import LIBRARIES
from vfio_user_bridge.libvfio_user.library import VARIABLE


def carry(folder: Path, there: Path) -> dict[str, str]:
    """Put libvfio-user into `folder`, if it is chosen.

    :param there: what the machine calls `folder`.
    :return: environment variables with which programs in the machine find it.
    """
    chosen = os.environ.get(VARIABLE)
    if not chosen:
        return {}
    library = _copy(Path(chosen), folder)
    return {VARIABLE: str(there / library.name), "LD_LIBRARY_PATH": str(there)}


def program(file: Path, folder: Path, there: Path) -> Path:
    """Put a program into `folder`; return the path by which the machine runs it.

    :param there: what the machine calls `folder`.
    """
    loaded = there / "loaded"
    copied = loaded / _copy(file, folder / "loaded").name
    # Only this program is to find its libraries there: hence no environment for all.
    words = f"LD_LIBRARY_PATH={shlex.quote(str(loaded))} exec {shlex.quote(str(copied))}"
    script = folder / file.name
    script.write_text(f'#!/bin/sh\n{words} "$@"\n')
    script.chmod(0o755)
    return there / script.name


def _copy(file: Path, folder: Path) -> Path:
    """Put a library or program into `folder`, with what it loads that the tree doesn't have."""
    folder.mkdir(parents=True, exist_ok=True)
    copied = Path(shutil.copy(file, folder))
    # It fails for those that load nothing.
    listed = subprocess.run(["ldd", file], capture_output=True, text=True, check=False).stdout
    for name, path in re.findall(r"^\s*(\S+) => (/\S+)", listed, re.MULTILINE):
        if not (tree.path() / LIBRARIES / name).exists():
            shutil.copy(path, folder / name)
    return copied
