# SPDX-License-Identifier: BSD-3-Clause
"""What Prometheus would find at a bridge that was started with --metrics."""

from __future__ import annotations

import http.client
import re
import socket
import time
from collections.abc import Mapping

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from .running_server import PATIENCE, RunningServer

Labels = frozenset[tuple[str, str]]


def address(running: RunningServer) -> str:
    """Where its metrics are, as its log tells once it is ready."""
    deadline = time.monotonic() + PATIENCE
    while not (found := re.search(r" metrics on (.*)\n", running.log())):
        assert time.monotonic() < deadline, running.log()
        time.sleep(0.001)
    return found[1]


def connect(where: str) -> socket.socket:
    """To a path, or to ADDRESS:PORT."""
    if "/" in where:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(where)
    else:
        host, _, port = where.rpartition(":")
        sock = socket.create_connection((host.strip("[]"), int(port)))
    sock.settimeout(PATIENCE)
    return sock


def text(where: str) -> str:
    with connect(where) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        response = http.client.HTTPResponse(sock)
        response.begin()
        with response:
            assert response.status == 200
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            return response.read().decode()


class Scrape:
    """One look at all metrics."""

    def __init__(self, where: str) -> None:
        self.families: list[Metric] = list(text_string_to_metric_families(text(where)))
        self._samples: Mapping[tuple[str, Labels], float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float | None:
        """The value of the sample with just these labels."""
        return self._samples.get((name, frozenset(labels.items())))

    def by(self, label: str, name: str) -> dict[str, float]:
        """The values of all samples of that name, by one of their labels."""
        found = ((dict(labels), value) for (n, labels), value in self._samples.items() if n == name)
        return {labels[label]: value for labels, value in found}
