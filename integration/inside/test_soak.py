# SPDX-License-Identifier: BSD-3-Clause
"""A short `make soak` of a real device: it holds no more than before.

For memory of its own to be flat, more clients would have to come first.
"""

from __future__ import annotations

from integration import devices
from integration.soak import soak

from .bridge import bind


def test_nothing_is_left() -> None:
    bind(devices.EDU_ALONE)
    soaked = soak(devices.EDU_ALONE, 15, first=5)
    print(soaked)
    assert soaked.after.held == soaked.before.held
