# SPDX-License-Identifier: BSD-3-Clause
"""The other engine: devices served through libvfio-user, the reference C library, by ctypes."""
