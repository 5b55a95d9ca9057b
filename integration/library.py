# SPDX-License-Identifier: BSD-3-Clause
"""Take this host's libvfio-user into the test machine, if $LIBVFIO_USER names one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from integration import tree
from integration.qemu import LIBRARIES
from vfio_user_bridge.libvfio_user import VARIABLE


def carry(folder: Path, there: Path) -> dict[str, str]:
    """Put the library, and what it needs that the tree doesn't have, into `folder`.

    :param there: what the machine calls `folder`.
    :return: environment variables with which programs in the machine find it.
    """
    chosen = os.environ.get(VARIABLE)
    if not chosen:
        return {}
    folder.mkdir(exist_ok=True)
    library = Path(shutil.copy(chosen, folder))
    needed = subprocess.run(["ldd", chosen], capture_output=True, text=True, check=True).stdout
    for name, path in re.findall(r"^\s*(\S+) => (/\S+)", needed, re.MULTILINE):
        if not (tree.path() / LIBRARIES / name).exists():
            shutil.copy(path, folder / name)
    return {VARIABLE: str(there / library.name), "LD_LIBRARY_PATH": str(there)}
