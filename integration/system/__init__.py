# SPDX-License-Identifier: BSD-3-Clause
"""Tests of the product as it is installed and run: in the test machine, under systemd."""
