# SPDX-License-Identifier: BSD-3-Clause
"""serve --metrics: what Prometheus finds there, after what clients did."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from vfio_user_bridge import __version__
from vfio_user_bridge.counters import Counters, bucket
from vfio_user_bridge.management.control import ask
from vfio_user_bridge.management.metrics import histogram

from . import client as c
from .descriptors import eventfds, memory_files
from .holdings import await_holdings, holdings
from .running_server import PATIENCE, SERVE, RunningServer, server
from .scrapes import Scrape, address, connect
from .wire import dma_map, region, set_irqs

PAGE = Path(__file__).parents[1] / "docs/users/metrics.md"
READ = region(0, 0, 4)
#: DATA_EVENTFD and ACTION_TRIGGER of struct vfio_irq_set; VFIO_PCI_MSI_IRQ_INDEX
SIGNAL, MSI = 1 << 2 | 1 << 5, 1


def started(folder: Path, *options: str) -> AbstractContextManager[RunningServer]:
    path = folder / "edu.sock"
    return server(path, "--socket-path", str(path), *options)


@pytest.fixture
def edu(tmp_path: Path) -> Iterator[RunningServer]:
    with started(tmp_path, "--metrics", "127.0.0.1:0", "--confine", "all") as running:
        yield running


def visit(client: c.Client, files: list[int], events: list[int]) -> None:
    """Two maps of 4096 and 8192 bytes, a third refused; five reads; one vector."""
    client.ask(c.DMA_MAP, dma_map(0, 4096), files)
    client.ask(c.DMA_MAP, dma_map(8192, 8192), files)
    client.refused(c.DMA_MAP, dma_map(0, 4096), files)
    for _ in range(5):
        client.ask(c.REGION_READ, READ)
    client.ask(c.SET_IRQS, set_irqs(SIGNAL, MSI, 0, 1), events)


def gone(edu: RunningServer) -> None:
    """Wait until the server has put the device back."""
    deadline = time.monotonic() + PATIENCE
    while Scrape(address(edu))("vfio_user_client_connected", device="edu"):
        assert time.monotonic() < deadline


def test_what_clients_did(edu: RunningServer) -> None:
    begun = time.time()
    with memory_files(1, 16384) as files, eventfds(1) as events:
        with edu.client() as client:
            visit(client, files, events)
            first = Scrape(address(edu))
        gone(edu)
        between = Scrape(address(edu))
        with edu.client() as client:
            visit(client, files, events)
            second = Scrape(address(edu))
    for seen, clients in ((first, 1), (between, 1), (second, 2)):
        there = seen is not between
        for name, value in (
            ("client_connected", there),
            ("draining", 0),
            ("dma_maps", 2 * there),
            ("dma_mapped_bytes", 12288 * there),
            ("clients_total", clients),
            ("refused_total", clients),
        ):
            assert seen(f"vfio_user_{name}", device="edu") == value, name
        assert seen.by("type", "vfio_user_irq_vectors") == ({"MSI": 1} if there else {})
        since = seen("vfio_user_client_connected_timestamp_seconds", device="edu")
        assert (since is not None) == there
        assert since is None or begun - 1 < since < time.time() + 1
        messages = {"VERSION": 1, "DMA_MAP": 3, "REGION_READ": 5, "DEVICE_SET_IRQS": 1}
        counts = {command: clients * count for command, count in messages.items()}
        assert seen.by("command", "vfio_user_messages_total") == counts
        assert seen.by("command", "vfio_user_message_duration_seconds_count") == counts
        durations = seen.by("command", "vfio_user_message_duration_seconds_sum").values()
        assert 0 < sum(durations) < time.time() - begun


def test_before_the_first_client(edu: RunningServer) -> None:
    seen = Scrape(address(edu))
    assert seen("vfio_user_bridge_info", version=__version__, engine="native") == 1
    for name in ("client_connected", "draining", "dma_maps", "clients_total", "refused_total"):
        assert seen(f"vfio_user_{name}", device="edu") == 0, name
    assert seen.by("command", "vfio_user_messages_total") == {}


def test_drained(tmp_path: Path) -> None:
    control = tmp_path / "control"
    options = ("--metrics", str(tmp_path / "metrics"), "--control", str(control))
    with started(tmp_path, *options) as edu:
        ask(control, "drain")
        assert Scrape(address(edu))("vfio_user_draining", device="edu") == 1


def test_all_is_documented_and_all_that_is_documented_is_there(tmp_path: Path) -> None:
    row = r"^\| `(vfio_user_\w+)` \| (.*?) \|"
    found = re.findall(row, PAGE.read_text(), re.MULTILINE)
    documented = {name: set(re.findall(r"\w+", labels)) for name, labels in found}
    assert len(documented) == len(found) > 0
    process = set(re.findall(r"`(process_\w+)`", PAGE.read_text()))
    policy = tmp_path / "policy"
    policy.write_text('[[rule]]\nregion = "bar0"\noffset = "0x0-0x3"\naction = "log"\n')
    options = ("--record", str(tmp_path / "edu.trace"), "--policy", str(policy))
    with (
        started(tmp_path, "--metrics", "127.0.0.1:0", *options) as edu,
        memory_files(1, 16384) as files,
        eventfds(1) as events,
        edu.client() as client,
    ):
        visit(client, files, events)
        seen = Scrape(address(edu))
    assert seen("vfio_user_policy_accesses_total", device="edu", rule="1") == 5  # READ's
    there = {}
    for family in seen.families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        there[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    assert there == {**documented, **{name: set() for name in process}}


def test_durations_are_where_they_belong() -> None:
    """Against the durations themselves, one by one: 1 ns to 18 minutes, in ns."""
    durations = [max(16, 3**power + offset) for power in range(1, 26) for offset in (-1, 0, 1)]
    durations += [(1 << power) + offset for power in range(4, 41) for offset in (-1, 0, 1)]
    row = Counters().rows[0]
    for duration in durations:
        row[bucket(max(16, duration))] += 1
    buckets, total = histogram(row)
    for end, count in buckets:
        assert count == sum(duration < float(end) * 1e9 for duration in durations), end
    assert total == pytest.approx(sum(durations) / 1e9, rel=1 / 16)
    ends = [float(end) for end, _ in buckets]
    assert ends == sorted(ends)
    assert (ends[0], ends[-2:]) == (1.024e-6, [2**36 / 1e9, float("inf")])


@pytest.mark.parametrize(
    "options",
    [
        ("--confine", "all"),
        ("--confine", "off"),
        pytest.param(
            ("--user", "nobody"),
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user"),
        ),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("where", ["[::1]:0", "metrics"])
def test_the_process_and_its_end(tmp_path: Path, where: str, options: tuple[str, ...]) -> None:
    """What it learns of itself it reads while it serves, under whatever confines it."""
    socket = tmp_path / where
    with started(tmp_path, "--metrics", where if ":" in where else str(socket), *options) as edu:
        place = address(edu)
        seen = Scrape(place)
        held = len(holdings(edu.process.pid).descriptors)
        assert seen("process_open_fds") in (held, held + 1, held + 2)  # the visitor, and its folder
        for name in ("start_time_seconds", "cpu_seconds_total", "resident_memory_bytes"):
            assert (seen(f"process_{name}") or 0) > 0, name
        if ":" not in where:
            assert place == str(socket)
            assert socket.stat().st_mode & 0o777 == 0o600
        edu.stop()
    assert "--user" in options or not list(tmp_path.iterdir())  # it's not nobody's folder
    with pytest.raises(OSError, match=r"refused|No such file"):
        connect(place)


def test_crowds_are_in_no_clients_way(edu: RunningServer) -> None:
    """Nor in another's who looks at the metrics, for longer than each of them may stay."""
    where = address(edu)
    before = holdings(edu.process.pid)
    with edu.client() as client, ExitStack() as stack:
        for number in range(20):
            visitor = connect(where)
            visitor.sendall((b"GET /metrics HTTP/1.1\r\n", b"\0" * 9000, b"")[number % 3])
            stack.enter_context(visitor) if number in (0, 10) else visitor.close()
            client.ask(c.REGION_READ, READ)
        assert Scrape(where)("vfio_user_messages_total", device="edu", command="REGION_READ") == 20
    await_holdings(edu.process.pid, before)
    assert "Traceback" not in edu.log()


def test_out_of_descriptors(edu: RunningServer) -> None:
    """Who comes then is answered later."""
    pid, where = edu.process.pid, address(edu)
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir())
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(Scrape, where)
        while "metrics: the host fails us: [Errno 24]" not in edu.log():
            assert not waiting.done()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        assert waiting.result(PATIENCE)("vfio_user_clients_total", device="edu") == 0
    assert "Traceback" not in edu.log()


def run(*options: str, prelude: str = "pass") -> subprocess.CompletedProcess[str]:
    script = f"import sys; {prelude}; from vfio_user_bridge.cli import main; sys.exit(main())"
    command = (sys.executable, "-c", script, *SERVE[3:], *options)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


@pytest.mark.parametrize(
    ("where", "absent", "status", "says"),
    [
        ("metrics", True, 1, r"serve --metrics takes prometheus-client: install python3-"),
        ("127.0.0.1:0", True, 1, r"serve --metrics takes prometheus-client: install python3-"),
        (":9105", False, 2, r"can't listen on ':9105': give an address and a port"),
        ("no/folder", False, 1, r"can't listen on .*no/folder: No such file"),
        ("192.0.2.1:9105", False, 1, r"can't listen on 192\.0\.2\.1:9105: Cannot assign"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(
    tmp_path: Path, where: str, *, absent: bool, status: int, says: str
) -> None:
    place = where if ":" in where else str(tmp_path / where)
    path = str(tmp_path / "edu.sock")
    prelude = "sys.modules['prometheus_client'] = None" if absent else "pass"
    done = run("--socket-path", path, "--metrics", place, prelude=prelude)
    assert (done.returncode, done.stdout) == (status, "")
    assert re.fullmatch(rf"vfio-user-bridge: {says}.*\n", done.stderr), done.stderr
    assert not list(tmp_path.iterdir())


def test_two_bridges_at_one_port(edu: RunningServer, tmp_path: Path) -> None:
    done = run("--socket-path", str(tmp_path / "other"), "--metrics", address(edu))
    assert (done.returncode, "Address already in use" in done.stderr) == (1, True)
