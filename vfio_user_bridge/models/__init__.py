# SPDX-License-Identifier: BSD-3-Clause
"""Devices in pure Python, for trying things without hardware."""
