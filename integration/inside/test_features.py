# SPDX-License-Identifier: BSD-3-Clause
"""Device features have the answers of the ioctl: none of the drivers here can migrate a device."""

from __future__ import annotations

import errno

import pytest

from integration import devices
from tests import client as wire
from tests.wire import u32
from vfio_user_bridge.kernel import vfio
from vfio_user_bridge.messages import FeatureFlags

from .bridge import Bridge

SIZE = 16


@pytest.mark.parametrize("flags", [FeatureFlags.PROBE | FeatureFlags.GET, FeatureFlags.GET])
@pytest.mark.parametrize(
    "feature", [vfio.VFIO_DEVICE_FEATURE_MIGRATION, vfio.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE]
)
def test_a_feature_that_the_driver_has_not(bridge: Bridge, feature: int, flags: int) -> None:
    with bridge.client(devices.E1000E) as device:
        _, fd = device.region_bytes(0)
        assert fd is not None
        request = u32(SIZE, feature | flags) + bytes(SIZE - 8)
        with pytest.raises(OSError, match=r".") as refused:
            vfio.device_feature(fd, request)
        assert device.wire.refused(wire.FEATURE, request) == refused.value.errno == errno.ENOTTY


def test_what_is_the_hosts_business(bridge: Bridge) -> None:
    """VFIO_DEVICE_FEATURE_PCI_VF_TOKEN would be one that the kernel takes."""
    with bridge.client(devices.E1000E) as device:
        request = u32(24, FeatureFlags.SET | 0) + bytes(16)
        assert device.wire.refused(wire.FEATURE, request) == errno.ENOTTY
