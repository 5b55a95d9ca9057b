# SPDX-License-Identifier: BSD-3-Clause
"""What goes around a device before it is served: rules, then what records.

In this order, so that a recording has what the guest saw.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .device import Device

if TYPE_CHECKING:
    from .policy.rules import Rule
    from .recording import RecordedDevice

log = logging.getLogger(__name__)


class Layers:
    """As the options of `serve` have them, for devices of these *names*.

    :raise UsageError: the rules are wrong, or one is for no device of these names
    """

    def __init__(self, options: Namespace, names: Sequence[str]) -> None:
        self._path, self._limit = options.record, options.record_limit
        self._several = len(names) > 1
        self._recordable = bool(options.record or options.control)
        self._rules: Sequence[Rule] = ()
        if options.policy:
            from .policy.rules import check_served, read

            self._rules = read(options.policy)
            check_served(self._rules, names)

    def around(
        self, device: Device, *, again: bool = False, left: bool = False
    ) -> tuple[Device, RecordedDevice | None]:
        """What is served in place of *device*; and that again, if it can be recorded.

        :param again: a predecessor has begun the recording
        :param left: and what it left of this device is gone on with

        :raise UsageError: it hasn't what a rule is about
        :raise BridgeError: the file to record into can't be had
        """
        if self._rules:
            from .policy.device import policed

            device = policed(device, self._rules)
        if not self._recordable:
            return device, None
        from .recording import RecordedDevice, new_file

        recorded = RecordedDevice(device)
        if self._path and not again:
            path = self._path / f"{device.name}.trace" if self._several else self._path
            recorded.start(new_file(path), self._limit)
        elif self._path and not left:
            log.warning("%s is no longer recorded: its bridge left nothing of it", device.name)
        return recorded, recorded
