# SPDX-License-Identifier: BSD-3-Clause
"""Migration of a device whose host driver can do it (VFIO_DEVICE_FEATURE_MIGRATION).

The kernel hands the device's state out as a file; on the wire it goes in messages instead.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .device import Keep, Take
from .kernel import vfio
from .messages import DeviceFeature, FeatureFlags
from .protocol import refuse

#: device_state, data_fd: struct vfio_device_feature_mig_state
_STATE = struct.Struct("=Ii")
#: flags: struct vfio_device_feature_migration
_MIGRATION = struct.Struct("=Q")

_SIZES = {
    vfio.VFIO_DEVICE_FEATURE_MIGRATION: _MIGRATION.size,
    vfio.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: _STATE.size,
}
#: those of the specification; the kernel has more, which are about the host or hold pointers
_KNOWN = (*_SIZES, 6, 7, 8)


class Migration:
    """The stream of one device's state, while there is one."""

    def __init__(self) -> None:
        self._stream = -1
        self._number = 0  # of the stream

    def save(self, keep: Keep, bdf: str) -> list[int | str | None]:
        """The stream's number and, while there is one, its name."""
        name = f"migration-{bdf.replace(':', '.')}-{self._number}"
        return [self._number, keep(name, self._stream) if self._stream >= 0 else None]

    def restore(self, saved: Sequence[Any], take: Take) -> None:
        self._number, name = saved
        self._stream = -1 if name is None else take(name)

    def feature(self, device: int, request: DeviceFeature) -> bytes:
        """``VFIO_DEVICE_FEATURE``: the data for the reply.

        :raise OSError: the kernel's, ENOTTY for a feature that the device hasn't
        """
        number = request.flags & FeatureFlags.MASK
        if number not in _KNOWN:
            raise refuse(errno.ENOTTY, f"no device feature {number}")
        if request.flags & FeatureFlags.PROBE:
            return self._ioctl(device, request, b"")
        if number not in _SIZES:
            raise refuse(errno.ENOTTY, "dirty pages can't be logged through the bridge")
        if request.flags & FeatureFlags.GET:
            answer = self._ioctl(device, request, bytes(_SIZES[number]))
        elif len(request.data) == _SIZES[number]:
            answer = self._ioctl(device, request, request.data)
        else:
            raise refuse(errno.EINVAL, f"{len(request.data)} bytes for device feature {number}")
        if number != vfio.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE:
            return answer
        state, stream = _STATE.unpack(answer)
        if request.flags & FeatureFlags.SET:
            self.close()
            self._stream = stream
            self._number += 1
        return _STATE.pack(state, -1)

    @staticmethod
    def _ioctl(device: int, request: DeviceFeature, data: bytes) -> bytes:
        size = DeviceFeature.FORMAT.size
        whole = replace(request, argsz=size + len(data), data=data)
        return vfio.device_feature(device, whole.pack())[size:]

    def read(self, size: int) -> bytes:
        return os.read(self._open_stream(), size)

    def write(self, data: bytes) -> None:
        stream = self._open_stream()
        while data:
            data = data[os.write(stream, data) :]

    def _open_stream(self) -> int:
        if self._stream < 0:
            raise refuse(errno.EINVAL, "the device is neither saving nor resuming")
        return self._stream

    def close(self) -> None:
        if self._stream >= 0:
            os.close(self._stream)
            self._stream = -1
