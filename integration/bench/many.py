# SPDX-License-Identifier: BSD-3-Clause
"""``python -m integration.bench.many COUNT FOLDER``: one process with COUNT devices of model:edu.

It is the product's `Server`, but not its command: `serve` has each model once, since names of
devices and of sockets are one. What it leaves out is the command line and confinement.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from pathlib import Path

from vfio_user_bridge.commands.serve import POLL
from vfio_user_bridge.listener import listen
from vfio_user_bridge.models import create
from vfio_user_bridge.server import Server

from .started import started


def sockets(folder: Path, count: int) -> list[Path]:
    return [folder / f"{number}.sock" for number in range(count)]


def serving(folder: Path, count: int) -> AbstractContextManager[int]:
    """Such a process, ready; gives its ID."""
    return started([sys.executable, "-m", "integration.bench.many", str(count), str(folder)])


def main() -> None:
    server = Server(patience=POLL / 1e6)
    for path in sockets(Path(sys.argv[2]), int(sys.argv[1])):
        server.add(create("edu"), listen(path, 0o600))
    server.run(lambda: print("ready", flush=True))


if __name__ == "__main__":
    main()
