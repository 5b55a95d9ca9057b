# SPDX-License-Identifier: BSD-3-Clause
"""Tests that run in the test machine, on real kernel VFIO; see `integration.machine`."""
