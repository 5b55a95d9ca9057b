# SPDX-License-Identifier: BSD-3-Clause
"""A bridge is killed and upgraded at random moments, while a client works and checks all replies.

    python -m integration.killing [--times N] [--seed N]

It serves the model under `supervise`, which here starts it anew without a pause.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.running_server import SERVE, RunningServer, server
from tests.supervised import SUPERVISE
from vfio_user_bridge.management.control import ask

from .hammer import MOST, Hammer

OPTIONS = repr({"most": 4096, "longest_pause": 0.0})
SUPERVISED = [sys.executable, "-c", SUPERVISE, OPTIONS, *SERVE]
#: of all events
UPGRADES = 0.15
#: of kills: those that don't wait until the new bridge answers
HASTY = 0.2
#: seconds, in which a bridge starts
START = 0.4
#: seconds, from an answer to the next event, at most
SOON = 0.05
PATIENCE = 60.0
#: what no log may say
COMPLAINTS = re.compile(r"Traceback|defect|of no use|can't go on|put out|client gone|fails us")


class Bridge:
    """What *running* supervises: always the latest."""

    def __init__(self, running: RunningServer, control: Path) -> None:
        self.control = control
        self.kills = 0
        self._running = running
        self._latest: int | None = None
        self._read = 0  # bytes of the log

    @property
    def pid(self) -> int | None:
        """None between two of them."""
        log = self._running.log()
        for line in log[self._read :].splitlines():
            if found := re.search(r"supervise: (?:started )?pid (\d+)(.*)", line):
                there = "descriptors" in found[2] or "took over" in found[2]
                self._latest = int(found[1]) if there else None
        self._read = log.rfind("\n") + 1
        return self._latest

    def kill(self) -> None:
        pid = self.pid
        if pid:
            self.kills += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def upgrade(self) -> None:
        """It succeeds, unless one of them is killed meanwhile."""
        kills = self.kills
        command = (sys.executable, "-m", "vfio_user_bridge", "upgrade", "--control", self.control)
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert "Traceback" not in done.stderr, done.stderr
        assert not done.returncode or self.kills > kills, done.stderr


class Killer(threading.Thread):
    """Lets a *bridge* live for as long as *chance* will, again and again.

    :param hammer: tells that it answers
    """

    def __init__(self, bridge: Bridge, hammer: Hammer, chance: random.Random, times: int) -> None:
        super().__init__()
        self.failure: BaseException | None = None
        self.over = False
        self.upgrades = 0
        self._bridge, self._hammer, self._chance, self._times = bridge, hammer, chance, times

    def run(self) -> None:
        try:
            for _ in range(self._times):
                if self.over:
                    return
                self._event()
        except BaseException as failure:  # the other thread raises it
            self.failure = failure
        finally:
            self.over = True

    def _event(self) -> None:
        chance, bridge = self._chance, self._bridge
        if chance.random() < HASTY:
            time.sleep(chance.uniform(0, START))
            bridge.kill()
            return
        self._await_answer()
        time.sleep(chance.uniform(0, SOON))
        if chance.random() >= UPGRADES:
            bridge.kill()
            return
        self.upgrades += 1
        if chance.random() < HASTY:
            with ThreadPoolExecutor(1) as pool:
                upgrading = pool.submit(bridge.upgrade)
                time.sleep(chance.uniform(0, 2 * START))
                bridge.kill()
            upgrading.result()
        else:
            bridge.upgrade()

    def _await_answer(self) -> None:
        # Replies of the one before may be on their way.
        enough, deadline = self._hammer.answered + MOST, time.monotonic() + PATIENCE
        while self._hammer.answered <= enough and not self.over:
            assert time.monotonic() < deadline, "it doesn't answer"
            time.sleep(0.001)


@contextlib.contextmanager
def bridge(folder: Path) -> Iterator[tuple[RunningServer, Bridge]]:
    path, control = folder / "socket", folder / "control"
    options = ("--socket-path", str(path), "--control", str(control))
    with server(path, *options, command=SUPERVISED) as running:
        yield running, Bridge(running, control)


def killing(times: int, seed: int) -> str:
    """Gives what was done.

    :raise AssertionError: what went wrong
    """
    chance = random.Random(seed)  # nosec B311 - secret from nobody
    with tempfile.TemporaryDirectory() as folder, bridge(Path(folder)) as (running, victim):
        pid = victim.pid
        assert pid
        with contextlib.closing(running.connect()) as client:
            hammer = Hammer(client, chance, lambda: victim.kills)
            killer = Killer(victim, hammer, random.Random(seed + 1), times)  # nosec B311
            begun = time.monotonic()
            killer.start()
            try:
                while not killer.over:
                    hammer.strike()
                hammer.strike()
                hammer.end()
            finally:
                killer.over = True
                killer.join()
                complaints = [it for it in running.log().splitlines() if COMPLAINTS.search(it)]
                if complaints or sys.exc_info()[0]:
                    sys.stderr.write("\n".join([*running.log().splitlines()[-30:], *complaints]))
            if killer.failure:
                raise killer.failure
            assert not complaints, complaints
            (device,) = ask(victim.control, "status")["devices"]
            assert device["clients"] == 1
        seconds = time.monotonic() - begun
        running.stop()
        assert not list(Path(folder).iterdir())
    return (
        f"{victim.kills} kills and {killer.upgrades} upgrades in {seconds:.0f} s:"
        f" {hammer.answered} replies in {hammer.rounds} rounds, {hammer.errors} of them EIO"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m integration.killing", description=__doc__)
    parser.add_argument("--times", type=int, default=500, help="events (%(default)s)")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    print(killing(options.times, options.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
