# SPDX-License-Identifier: BSD-3-Clause
"""A real Prometheus finds what a bridge tells, and Grafana's dashboard has something to show."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from integration.prometheus import INTERVAL, PATIENCE, Prometheus, program, prometheus
from tests import client as c
from tests import scrapes
from tests.descriptors import eventfds, memory_files
from tests.running_server import RunningServer, server
from tests.wire import dma_map, dma_unmap, region, set_irqs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DASHBOARD = Path(__file__).parents[1] / "grafana/vfio-user-bridge.json"
#: DATA_EVENTFD and ACTION_TRIGGER of struct vfio_irq_set; VFIO_PCI_MSI_IRQ_INDEX
SIGNAL, MSI = 1 << 2 | 1 << 5, 1
#: what Grafana takes for a rate when it looks so often: four times the interval
RATE_INTERVAL = f"{4 * INTERVAL}ms"


def work(edu: RunningServer, end: threading.Event) -> None:
    """Be one client after another, each with maps, accesses, an interrupt and a refusal."""
    with memory_files(1) as files, eventfds(1) as events:
        while not end.is_set():
            with edu.client() as client:
                client.ask(c.DMA_MAP, dma_map(0, 4096), files)
                client.ask(c.SET_IRQS, set_irqs(SIGNAL, MSI, 0, 1), events)
                until = time.monotonic() + 1
                while time.monotonic() < until and not end.is_set():
                    client.ask(c.REGION_READ, region(0, 0, 4))
                    client.refused(c.DMA_MAP, dma_map(0, 4096), files)
                    client.ask(c.REGION_WRITE, region(4, 0, bytes(4)))
                    time.sleep(0.01)
                client.ask(c.DMA_UNMAP, dma_unmap(0, 4096))


@pytest.fixture(scope="module")
def edu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A bridge with a client at work."""
    folder = tmp_path_factory.mktemp("edu")
    path = folder / "edu.sock"
    options = ("--socket-path", str(path), "--metrics", "127.0.0.1:0", "--record")
    with server(path, *options, str(folder / "edu.trace"), "--confine", "all") as running:
        end = threading.Event()
        worker = threading.Thread(target=work, args=(running, end))
        worker.start()
        yield running
        end.set()
        worker.join()


@pytest.fixture(scope="module")
def watcher(edu: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with prometheus(tmp_path_factory.mktemp("prometheus"), [scrapes.address(edu)]) as running:
        yield running


def test_promtool_has_nothing_to_say(edu: RunningServer) -> None:
    checked = subprocess.run(
        (program("promtool"), "check", "metrics"),
        input=scrapes.text(scrapes.address(edu)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_every_query_of_the_dashboard_is_answered(watcher: Prometheus) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    chosen = choices(watcher, dashboard)
    queries = {
        f"{panel['title']}: {target['expr']}": interpolated(target["expr"], chosen)
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }
    deadline = time.monotonic() + PATIENCE
    left = dict(queries)
    while left:
        left = {name: query for name, query in left.items() if not shown(watcher, query)}
        assert time.monotonic() < deadline, left
    assert len(queries) > 10


def choices(watcher: Prometheus, dashboard: Mapping[str, Any]) -> dict[str, str]:
    """Return what the dashboard's variables stand for while all is chosen, as regex in PromQL."""
    chosen = {"__rate_interval": RATE_INTERVAL}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "datasource":
            continue
        asked = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert asked, variable
        deadline = time.monotonic() + PATIENCE
        while not (values := watcher.values(asked[2], interpolated(asked[1], chosen))):
            assert time.monotonic() < deadline, variable
        chosen[variable["name"]] = f"({'|'.join(map(re.escape, values))})".replace("\\", r"\\")
    return chosen


def interpolated(text: str, chosen: Mapping[str, str]) -> str:
    """Replace each $variable; one that isn't there is a KeyError."""
    return re.sub(r"\$(\w+)", lambda found: chosen[found[1]], text)


def shown(watcher: Prometheus, query: str) -> bool:
    """Tell whether there is a number to draw."""
    points = itertools.chain.from_iterable(line["values"] for line in watcher.series(query))
    return any(math.isfinite(float(value)) for _, value in points)


def test_it_counts_what_a_client_did(watcher: Prometheus) -> None:
    """And not just anything: as often as it reads, it is refused and it writes."""
    deadline = time.monotonic() + PATIENCE
    query = "sum by (command) (vfio_user_messages_total)"
    while True:
        found = watcher.ask("query", query=query)["result"]
        counts = {line["metric"]["command"]: float(line["value"][1]) for line in found}
        if counts.get("REGION_READ", 0) > 50:
            break
        assert time.monotonic() < deadline, counts
    assert counts.keys() == {
        *("VERSION", "DMA_MAP", "DMA_UNMAP", "DEVICE_SET_IRQS", "REGION_READ", "REGION_WRITE")
    }
    assert abs(counts["REGION_READ"] - counts["REGION_WRITE"]) <= 1
    assert abs(counts["DMA_MAP"] - counts["REGION_READ"] - counts["VERSION"]) <= 1
