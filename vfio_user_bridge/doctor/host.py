# SPDX-License-Identifier: BSD-3-Clause
"""The host that is looked at, and what it is to serve. Checks look at it through this alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Host:
    """A host whose files are below *root*: tests have a tree of their own.

    :param path: the folders of programs, as in the environment's PATH
    :param memory: the RAM of the guest to come, in bytes, if that is known
    :param socket_dir: where sockets are to be, likewise
    """

    root: Path = Path("/")
    path: str = ""
    memory: int | None = None
    socket_dir: Path | None = None

    @property
    def sysfs(self) -> Path:
        return self.root / "sys"

    @property
    def proc(self) -> Path:
        return self.root / "proc"

    def has(self, name: str) -> bool:
        return (self.root / name).exists()

    def text(self, name: str) -> str:
        """What is in a file; nothing if there is no such file.

        :raise OSError: it can't be read
        """
        try:
            return (self.root / name).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def names(self, name: str) -> list[str]:
        """What is in a folder; nothing if there is no such folder.

        :raise OSError: it can't be read
        """
        try:
            return sorted(os.listdir(self.root / name))  # noqa: PTH208 - names are wanted
        except FileNotFoundError:
            return []
