# SPDX-License-Identifier: BSD-3-Clause
"""What a running bridge says of itself: values, and what the control socket makes of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .counters import Counters, Trouble, percentile
from .device import PciIrq
from .peers import Peer
from .protocol import Command
from .state import State

if TYPE_CHECKING:
    from .recording import Progress

#: which percentiles of how long messages took are told
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, slots=True)
class ClientStatus:
    """Who has a device, since when (seconds since the epoch), and for how long (seconds)."""

    pid: int
    uid: int
    since: float
    connected: float


@dataclass(frozen=True, slots=True)
class RuleStatus:
    """A rule of the policy, and how many accesses it was about since the start."""

    number: int
    note: str
    hits: int


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """A device and its client."""

    name: str
    socket: str
    state: str  # "no client", "serving", "coming to rest", or "wanted by the host"
    draining: bool
    client: ClientStatus | None
    maps: int
    mapped: int  # bytes
    #: how many vectors have an eventfd, by interrupt type
    irqs: Mapping[str, int]
    #: this client's
    counters: Counters
    #: all clients' since the start, this one among them
    totals: Counters
    #: how many there were
    clients: int
    rules: Sequence[RuleStatus]
    recording: Progress | None

    @property
    def last_error(self) -> Trouble | None:
        return self.totals.trouble

    def as_data(self) -> dict[str, Any]:
        """For MessagePack and JSON; times in seconds, but those of messages in microseconds."""
        return {
            "name": self.name,
            "socket": self.socket,
            "state": self.state,
            "draining": self.draining,
            "client": asdict(self.client) if self.client else None,
            "clients": self.clients,
            "maps": self.maps,
            "mapped": self.mapped,
            "irqs": dict(self.irqs),
            "messages": messages(self.counters),
            "refused": self.counters.refused,
            "rules": [asdict(rule) for rule in self.rules],
            "recording": asdict(self.recording) if self.recording else None,
            "last_error": asdict(self.last_error) if self.last_error else None,
        }


@dataclass(frozen=True, slots=True)
class Known:
    """What a client's session knows, for `DeviceStatus`."""

    maps: int = 0
    mapped: int = 0
    irqs: Mapping[str, int] = field(default_factory=dict)


def known(state: State | None) -> Known:
    """Its thread may go on meanwhile."""
    if state is None:
        return Known()
    maps = list(state.maps)
    vectors = {index: bits.bit_count() for index, bits in sorted(state.vectors.items())}
    irqs = {irq_name(index): count for index, count in vectors.items() if count}
    return Known(len(maps), sum(entry.size for entry in maps), irqs)


def irq_name(index: int) -> str:
    try:
        return PciIrq(index).name
    except ValueError:
        return f"type {index}"


def client_status(who: Peer, since: float) -> ClientStatus:
    """:param since: time.time() then"""
    return ClientStatus(who.pid, who.uid, since, round(max(0.0, time.time() - since), 1))


def messages(counters: Counters) -> dict[str, dict[str, float]]:
    """By command: how many, and percentiles of how long they took, in microseconds."""
    found = {}
    for command, count in counters.messages().items():
        row = counters.rows[command]
        times = {name: percentile(row, share) * 1e6 for name, share in PERCENTILES.items()}
        found[Command(command).name] = {"count": count, **times}
    return found
