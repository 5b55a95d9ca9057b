# SPDX-License-Identifier: BSD-3-Clause
"""Tests that run in a test machine whose IOMMU doesn't remap interrupts."""
