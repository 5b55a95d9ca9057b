# SPDX-License-Identifier: BSD-3-Clause
"""Packages beyond the standard library, for those commands that take them."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import BridgeError


def load(module: str, what: str) -> ModuleType:
    """Import *module*, which *what* takes.

    :raise BridgeError: it isn't installed
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0].replace("_", "-")
        raise BridgeError(
            f"{what} takes {package}: install python3-{package}, or by pip {package}"
        ) from None
