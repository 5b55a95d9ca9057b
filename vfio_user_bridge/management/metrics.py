# SPDX-License-Identifier: BSD-3-Clause
"""What a bridge tells Prometheus: `serve --metrics`. docs/users/metrics.md says what each is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from vfio_user_bridge import __version__
from vfio_user_bridge.counters import bucket, upper_end
from vfio_user_bridge.extras import load
from vfio_user_bridge.listener import Listener
from vfio_user_bridge.protocol import Command
from vfio_user_bridge.status import DeviceStatus

from .httpd import Httpd

_NEEDED_BY = "serve --metrics"
prometheus = load("prometheus_client", _NEEDED_BY)
families = load("prometheus_client.core", _NEEDED_BY)

_PREFIX = "vfio_user"
#: where buckets of durations end, in ns: powers of 2 from 1 µs to the minute for which QEMU waits
_ENDS = [1 << exponent for exponent in range(10, 37)]

Statuses = Callable[[], Sequence[DeviceStatus]]
#: a metric's name, what it is, and how it is read off a device; None where it has none
Metric = tuple[str, str, Callable[[DeviceStatus], float | None]]

GAUGES: Sequence[Metric] = (
    ("client_connected", "Whether the device has a client.", lambda d: d.client is not None),
    (
        "client_connected_timestamp_seconds",
        "When the client came, as Unix time.",
        lambda d: d.client.since if d.client else None,
    ),
    ("draining", "Whether the operator has clients refused.", lambda d: d.draining),
    ("dma_maps", "DMA maps of the client.", lambda d: d.maps),
    ("dma_mapped_bytes", "Memory in the client's DMA maps.", lambda d: d.mapped),
    (
        "recording_bytes",
        "Size of the recording.",
        lambda d: d.recording.bytes if d.recording else None,
    ),
    (
        "recording_limit_bytes",
        "Size at which the recording ends.",
        lambda d: d.recording.limit if d.recording else None,
    ),
)
COUNTERS: Sequence[Metric] = (
    ("clients", "Clients that were let in.", lambda d: d.clients),
    ("refused", "Messages that were answered with an error.", lambda d: d.totals.refused),
)


def offer(listener: Listener, statuses: Statuses, engine: str) -> Httpd:
    """What serves the metrics on *listener*, once it is started. Call it before confining.

    :param statuses: of each device, as of now
    :param engine: which one serves them
    """
    registry = prometheus.CollectorRegistry()
    prometheus.ProcessCollector(registry=registry)  # learns when the host was booted
    registry.register(Collector(statuses, engine))
    return Httpd(listener, partial(prometheus.generate_latest, registry))


class Collector:
    """The metrics of all devices, in prometheus_client's terms."""

    def __init__(self, statuses: Statuses, engine: str) -> None:
        self._statuses = statuses
        self._engine = engine

    def collect(self) -> Iterator[Any]:
        devices = self._statuses()
        bridge = families.InfoMetricFamily(f"{_PREFIX}_bridge", "The bridge that this is.")
        bridge.add_metric([], {"version": __version__, "engine": self._engine})
        yield bridge
        for kind, metrics in (
            (families.GaugeMetricFamily, GAUGES),
            (families.CounterMetricFamily, COUNTERS),
        ):
            for name, what, value in metrics:
                family = kind(f"{_PREFIX}_{name}", what, labels=["device"])
                for device in devices:
                    if (known := value(device)) is not None:
                        family.add_metric([device.name], known)
                yield family
        yield _vectors(devices)
        yield _policy(devices)
        yield from _messages(devices)


def _vectors(devices: Sequence[DeviceStatus]) -> Any:
    family = families.GaugeMetricFamily(
        f"{_PREFIX}_irq_vectors",
        "Interrupt vectors that have an eventfd of the client's.",
        labels=["device", "type"],
    )
    for device in devices:
        for name, count in device.irqs.items():
            family.add_metric([device.name, name], count)
    return family


def _policy(devices: Sequence[DeviceStatus]) -> Any:
    family = families.CounterMetricFamily(
        f"{_PREFIX}_policy_accesses",
        "Accesses that a rule of the policy was about.",
        labels=["device", "rule"],
    )
    for device in devices:
        for rule in device.rules:
            family.add_metric([device.name, str(rule.number)], rule.hits)
    return family


def _messages(devices: Sequence[DeviceStatus]) -> Iterator[Any]:
    labels = ["device", "command"]
    counts = families.CounterMetricFamily(
        f"{_PREFIX}_messages", "Messages that were answered.", labels=labels
    )
    durations = families.HistogramMetricFamily(
        f"{_PREFIX}_message_duration_seconds",
        "How long messages took, until their reply was ready.",
        labels=labels,
    )
    for device in devices:
        for command, row in sorted(device.totals.rows.items()):
            labelled = [device.name, Command(command).name]
            counts.add_metric(labelled, sum(row))
            durations.add_metric(labelled, *histogram(row))
    yield counts
    yield durations


def histogram(row: Sequence[int]) -> tuple[list[tuple[str, int]], float]:
    """Counts up to each end, in seconds; and about how long all took together.

    A row knows a duration to an eighth only, so each counts as the middle of where it is.
    """
    buckets = [(str(end / 1e9), sum(row[: bucket(end)])) for end in _ENDS]
    total = sum(
        count * (upper_end(index - 1) + upper_end(index)) / 2
        for index, count in enumerate(row)
        if count
    )
    return [*buckets, ("+Inf", sum(row))], total / 1e9
