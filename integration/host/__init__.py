# SPDX-License-Identifier: BSD-3-Clause
"""Tests with a real QEMU on the host: no kernel VFIO, no guest."""
