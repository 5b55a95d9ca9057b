# SPDX-License-Identifier: BSD-3-Clause
"""Recordings of what was asked of a device: docs/developers/trace-format.md has the format."""
