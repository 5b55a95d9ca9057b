# SPDX-License-Identifier: BSD-3-Clause
"""Many clients, one after the other, and what the server holds before and after them.

    python -m integration.soak [--clients N] [DEVICE]

Each client asks for everything once: see tests.visit. The first few aren't counted, for they have
the server load and allocate what it keeps.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from integration import devices
from tests.holdings import Holdings, await_no_client, holdings
from tests.processes import number, status
from tests.running_server import RunningServer, server
from tests.visit import Visit

MODEL = "model:edu"
CLIENTS = 2000
FIRST = 200
#: What the allocator may keep more of, in KiB: 32 bytes for each of CLIENTS
ROOM = 64
COMMAND = (sys.executable, "-m", "vfio_user_bridge")
EDUS = (MODEL, devices.EDU, devices.EDU_ALONE)


@dataclass(frozen=True)
class Moment:
    """What the server holds, and how much memory it takes, in KiB."""

    held: Holdings
    resident: int

    @classmethod
    def now(cls, pid: int) -> Moment:
        return cls(holdings(pid), number(status(pid)["VmRSS"]))

    def rows(self) -> dict[str, int]:
        return {
            "descriptors": len(self.held.descriptors),
            "threads": self.held.threads,
            "client files mapped": self.held.client_files,
            "locked, KiB": self.held.locked,
            "pinned, KiB": self.held.pinned,
            "RSS, KiB": self.resident,
        }


@dataclass(frozen=True)
class Soaked:
    """How it was before and after so many clients, in so many seconds."""

    before: Moment
    after: Moment
    clients: int
    seconds: float

    @property
    def flat(self) -> bool:
        grown = self.after.resident - self.before.resident
        return self.after.held == self.before.held and grown <= ROOM

    def __str__(self) -> str:
        after = self.after.rows()
        lines = [f"{'':20}{'before':>10}{'after':>10}"]
        lines += [
            f"{name:20}{value:10}{after[name]:10}" for name, value in self.before.rows().items()
        ]
        rate = self.clients / self.seconds
        lines += [f"{self.clients} clients in {self.seconds:.0f} s, {rate:.1f} a second"]
        return "\n".join(lines)


def soak(device: str, clients: int, *, first: int = FIRST) -> Soaked:
    """Serve *device*, a model or what vfio-pci has, to so many clients.

    :param first: how many come before them
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "socket")
        command = (*COMMAND, "serve", device, "--socket-path", str(path))
        with server(path, command=command) as serving:
            idle = holdings(serving.process.pid)
            _visits(serving, device, first, idle)
            before = Moment.now(serving.process.pid)
            begun = time.monotonic()
            _visits(serving, device, clients, idle)
            seconds = time.monotonic() - begun
            after = Moment.now(serving.process.pid)
            serving.stop()
    return Soaked(before, after, clients, seconds)


def _visits(serving: RunningServer, device: str, count: int, idle: Holdings) -> None:
    for _ in range(count):
        with closing(serving.connect()) as client:
            Visit(client).pay(edu=device in EDUS)
    await_no_client(serving.process.pid, idle)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m integration.soak", description=__doc__)
    parser.add_argument("--clients", type=int, default=CLIENTS, help="how many (%(default)s)")
    parser.add_argument("device", nargs="?", default=MODEL, help="a model, or a PCI address")
    options = parser.parse_args()
    if not options.device.startswith("model:"):
        subprocess.run((*COMMAND, "bind", options.device), check=True)
    soaked = soak(options.device, options.clients)
    print(f"{options.device}\n{soaked}")
    if not soaked.flat:
        print("it isn't flat", file=sys.stderr)
    return 0 if soaked.flat else 1


if __name__ == "__main__":
    sys.exit(main())
