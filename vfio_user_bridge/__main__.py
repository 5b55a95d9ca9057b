# SPDX-License-Identifier: BSD-3-Clause
"""``python -m vfio_user_bridge``, and what the command `vfio-user-bridge` runs."""

import sys

from .cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
