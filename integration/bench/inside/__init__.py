# SPDX-License-Identifier: BSD-3-Clause
"""Rows that are measured in the test machine: they take real devices, and give some to the bridge.

A row here is a file as any other, but for its `Setting.folder` being a folder of the machine.
"""
