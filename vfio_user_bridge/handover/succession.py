# SPDX-License-Identifier: BSD-3-Clause
"""Successors that want to take over: they are met in one thread, and come to serve by another."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, NoReturn

from vfio_user_bridge.errors import BridgeError

if TYPE_CHECKING:
    from .link import ToSuccessor

log = logging.getLogger(__name__)


class _Succession:
    """One that waits, and what becomes of it."""

    def __init__(self, link: ToSuccessor, process: int) -> None:
        self.link = link
        self.process = process
        self.over = threading.Event()
        self.failure: BridgeError | None = None


class Successions:
    """:param ring: tells the thread that is to `grant` that there is something to do"""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._waiting: SimpleQueue[_Succession] = SimpleQueue()

    def ask(self, link: ToSuccessor) -> None:
        """Let the one behind *link* take over. If all goes well, this process ends here.

        :raise BridgeError: it doesn't, and all goes on as before
        """
        try:
            succession = _Succession(link, link.greeted())
            self._waiting.put(succession)
            self._ring()
            succession.over.wait()
            if succession.failure:
                raise succession.failure
        except BridgeError as error:
            log.warning("not replaced: %s", error)
            link.go_on()
            raise

    def grant(self, hand_over: Callable[[ToSuccessor, int], NoReturn]) -> None:
        """*hand_over* to those who wait, given its link and its process."""
        while not self._waiting.empty():
            succession = self._waiting.get()
            try:
                hand_over(succession.link, succession.process)
            except BridgeError as error:
                succession.failure = error
            except (OSError, MemoryError) as error:
                reason = str(error) or "no memory"
                succession.failure = BridgeError(f"the host fails us: {reason}; try again")
            except Exception:  # guests are worth more than an upgrade
                log.exception("a defect of the bridge, please report it")
                succession.failure = BridgeError("a defect of the bridge, which its log has")
            finally:
                succession.over.set()
