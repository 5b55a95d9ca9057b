# SPDX-License-Identifier: BSD-3-Clause
"""The operator's rules for what a guest may do to its device."""
