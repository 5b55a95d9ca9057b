# SPDX-License-Identifier: BSD-3-Clause
"""How a bridge is replaced under a running guest: by an upgrade, or after it was killed."""
