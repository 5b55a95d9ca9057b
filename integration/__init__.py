# SPDX-License-Identifier: BSD-3-Clause
"""What needs a real QEMU or kernel VFIO: the test machine, its tests, the demo."""
