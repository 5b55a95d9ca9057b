# SPDX-License-Identifier: BSD-3-Clause
"""An unmodified QEMU finds the same device behind a bridge as with its own vfio-pci."""

from __future__ import annotations

import json

import pytest

from integration import devices
from integration.edu_script import CHAPTERS, Chapter, scrub, see
from vfio_user_bridge import qemu

from .bridge import Bridge, bind


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_edu_through_the_bridge_is_edu(chapter: Chapter) -> None:
    bind(devices.EDU_ALONE)
    direct = f"vfio-pci,host={devices.EDU_ALONE},addr=4.0"
    see(scrub, direct)
    expected = see(chapter, direct)
    see(scrub, direct)
    with Bridge(devices.EDU_ALONE) as serving:
        bridged = json.dumps({**qemu.device(serving.socket(devices.EDU_ALONE)), "addr": "4.0"})
        assert see(chapter, bridged) == expected
