# SPDX-License-Identifier: BSD-3-Clause
"""Devices in pure Python, for trying things without hardware. Each has a file of its own."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from vfio_user_bridge.errors import UsageError
from vfio_user_bridge.limits import DEFAULTS, Limits

if TYPE_CHECKING:
    from vfio_user_bridge.device import Device

#: what comes after ``model:`` on the command line, which is its file's name too, and the class
MODELS = {"edu": "Edu"}


def create(name: str, limits: Limits = DEFAULTS) -> Device:
    """Make the model *name*, whose clients keep to *limits*, importing nothing of the others.

    :raise UsageError: there is no such model
    """
    if name not in MODELS:
        known = ", ".join(f"model:{model}" for model in MODELS)
        raise UsageError(f"there is no model:{name}; there are: {known}")
    device: Device = getattr(import_module(f".{name}", __name__), MODELS[name])(limits)
    return device
