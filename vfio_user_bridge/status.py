# SPDX-License-Identifier: BSD-3-Clause
"""What a running bridge says of itself: `vfio-user-bridge status`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .protocol import Command
from .requests import State


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """A device and its client; sizes are in bytes, times in seconds."""

    name: str
    socket: str
    state: str  # "no client", "serving", "coming to rest", or "wanted by the host"
    client: str = ""
    connected: float = 0.0
    maps: int = 0
    mapped: int = 0
    messages: Mapping[str, int] = field(default_factory=dict)
    refused: int = 0


def of_client(state: State) -> dict[str, Any]:
    """What is known of a client, for `DeviceStatus`. Its thread goes on meanwhile."""
    maps = list(state.maps)
    counts = dict(state.messages)
    return {
        "connected": round(time.monotonic() - state.since, 1),
        "maps": len(maps),
        "mapped": sum(entry.size for entry in maps),
        "messages": {Command(command).name: count for command, count in counts.items() if count},
        "refused": state.refused,
    }


def as_text(status: Mapping[str, Any]) -> str:
    """The answer of the control socket's method `status`, for people."""
    lines = [f"vfio-user-bridge {status['version']}, pid {status['pid']}"]
    confinement = status["confinement"]
    lines += [f"  confined: {what}" for what in confinement["in_force"]]
    lines += [f"  lacking:  {what}" for what in confinement["lacking"]]
    for device in status["devices"]:
        lines.append(f"{device['name']}: {device['state']}, on {device['socket']}")
        if device["client"]:
            lines += [f"  {line}" for line in _client(device)]
    return "\n".join(lines)


def _client(device: Mapping[str, Any]) -> Sequence[str]:
    counts = sorted(device["messages"].items(), key=lambda item: -item[1])
    return (
        f"client:   {device['client']}, for {device['connected']:.0f} s",
        f"maps:     {device['maps']}, {device['mapped']:,} bytes",
        f"messages: {', '.join(f'{name} {count}' for name, count in counts)}",
        f"refused:  {device['refused']}",
    )
