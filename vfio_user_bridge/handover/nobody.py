# SPDX-License-Identifier: BSD-3-Clause
"""What was before a process that is the first: nothing. `predecessor` has the other cases."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING

from vfio_user_bridge.errors import BridgeError

if TYPE_CHECKING:
    from vfio_user_bridge.listener import Listener
    from vfio_user_bridge.notify import Manager

    from .inherited import Left
    from .store import Store

log = logging.getLogger(__name__)


class Nobody:
    """This process is the first."""

    #: what it left, by device
    left: Mapping[str, Left] = {}
    #: names of what the manager has kept so far
    kept: tuple[str, ...] = ()
    #: whether there was anybody
    found = False
    #: whether it runs, and goes on if we don't take over
    runs = False

    def environment(self) -> MutableMapping[str, str]:
        """In which the service manager says how to be told."""
        return os.environ

    def store(self, manager: Manager) -> Store | None:
        """Where open files are kept; None if *manager* keeps none, or they'd be of no use."""
        if not manager.keeps:
            return None
        from .document import msgpack

        try:
            msgpack()
        except BridgeError as error:
            log.warning("a crash will put clients out: %s", error)
            return None
        from .store import Store

        return Store(manager, self.kept)

    def listener(self, _what: str) -> Listener | None:
        """The listening socket that it left for that."""
        return None

    def resume(self, _offer: Callable[[str, Left], None]) -> Sequence[str]:
        """*_offer* each device that it left, with what it left. Gives which of them go on.

        :raise BridgeError: one doesn't, and the predecessor runs
        """
        return ()

    def or_it_goes_on(self) -> contextlib.AbstractContextManager[None]:
        """Whatever goes wrong within, one that runs is told, and this process ends there and then:
        nothing may be undone that the two have in common, or that another could go on with.
        """
        return contextlib.nullcontext()

    def is_over(self) -> None:
        """All is there that serving takes: it is our turn.

        :raise BridgeError: it isn't
        """
