# SPDX-License-Identifier: BSD-3-Clause
"""What runs in seconds with nothing but Python."""
