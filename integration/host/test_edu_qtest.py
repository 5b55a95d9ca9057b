# SPDX-License-Identifier: BSD-3-Clause
"""The model of edu is QEMU's edu: the same script against both, all that it sees compared.

The same vfio-user-pci stands between the guest and the model that stands there for hardware, so
what it changes for hardware it changes here.
"""

from __future__ import annotations

import pytest

from integration.edu_script import (
    CHAPTERS,
    DMA_SOURCE,
    LIVENESS,
    MEMORY,
    Chapter,
    Edu,
    Seen,
    see,
)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_model_is_qemus(chapter: Chapter, vfio_user_edu: str) -> None:
    assert see(chapter, vfio_user_edu) == see(chapter, "edu,addr=4.0")


def test_reset_is_more_than_qemus(vfio_user_edu: str) -> None:
    """The one difference. QEMU's edu has no reset and keeps its registers, as it does under
    vfio-pci; the model has one, because what a client left must not be there for the next.
    """

    def after_reset(edu: Edu) -> Seen:
        edu.pci.enable()
        edu.set(LIVENESS, 0x12345678)
        edu.set(DMA_SOURCE, MEMORY, 8)
        edu.pci.write_config(0xE0, 4, 0xCAFECAFE)
        edu.qtest.reset()
        edu.host.map_config()
        edu.pci.enable()
        return [edu.get(LIVENESS), edu.get(DMA_SOURCE, 8), edu.pci.read_config(0xE0, 4)]

    assert see(after_reset, "edu,addr=4.0") == [0xEDCBA987, MEMORY, 0xCAFECAFE]
    assert see(after_reset, vfio_user_edu) == [0, 0, 0]
