# SPDX-License-Identifier: BSD-3-Clause
"""How long nobody answers a client, measured from outside: by asking all the time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from tests.client import REGION_READ, Client
from tests.wire import region

CONFIG = 7
PAUSE = 0.001  # seconds
PATIENCE = 60.0


class Away:
    """Asks a client's device for its IDs, in a thread, until `close`.

    :param client: has agreed on a version, and nobody else uses it meanwhile
    :param pause: seconds between an answer and the next question
    """

    def __init__(self, client: Client, *, pause: float = PAUSE) -> None:
        self._client = client
        self._pause = pause
        self._lock = threading.Lock()
        self._answers = 0
        self._longest = 0.0
        self._over = False
        pool = ThreadPoolExecutor(1)
        self._asking = pool.submit(self._ask)
        pool.shutdown(wait=False)

    def longest(self) -> float:
        """The longest time between two answers since this was last asked, in seconds.

        All that was asked before is answered first.

        :raise OSError, EOFError, AssertionError: the device went, or is another than at first
        """
        enough = self._answers + 2  # the question that is on its way may be from before
        deadline = time.monotonic() + PATIENCE
        while self._answers < enough:
            if self._asking.done():
                self._asking.result()
            assert time.monotonic() < deadline, f"no answer for {PATIENCE:.0f} s"
            time.sleep(PAUSE)
        with self._lock:
            longest, self._longest = self._longest, 0.0
        return longest

    def _ask(self) -> None:
        first, last = None, time.monotonic()
        while not self._over:
            ids = self._client.ask(REGION_READ, region(0, CONFIG, 4))
            now = time.monotonic()
            first = first or ids
            assert ids == first, f"its IDs are {ids.hex()}, and were {first.hex()}"
            with self._lock:
                self._longest = max(self._longest, now - last)
                self._answers += 1
            last = now
            time.sleep(self._pause)

    def close(self) -> None:
        """Ask no more."""
        self._over = True
        self._asking.exception(PATIENCE)
