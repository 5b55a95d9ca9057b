# SPDX-License-Identifier: BSD-3-Clause
"""Debian's Prometheus, looking at bridges; and its promtool.

Neither is installed: the package would start a server, now and at each boot.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

from integration import cache

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from integration.progress import LoggedStep

FETCH = """
mkdir "$1" && cd "$1" && apt-get update && apt-get download prometheus &&
dpkg-deb --extract prometheus_*.deb . && rm prometheus_*.deb
"""
PATIENCE = 20.0  # seconds
INTERVAL = 250  # milliseconds from one look to the next


def program(name: str) -> Path:
    """Return the path of ``prometheus`` or ``promtool``.

    :raise StepError: Debian's package can't be had.
    """

    def build(part: Path, step: LoggedStep) -> None:
        step.run("sh", "-c", FETCH, "sh", part)

    return cache.artefact("prometheus", "unpacking Prometheus", FETCH, build) / "usr/bin" / name


class Prometheus:
    """One that runs, at ADDRESS:PORT."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the data that its HTTP API has at `path`.

        :raise urllib.error.HTTPError: it refuses, say since a query is wrong.
        """
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:  # nosec B310 - our own
            return json.load(answer)["data"]

    def series(self, query: str) -> list[dict[str, Any]]:
        """Return what `query` gives as it is drawn, over the last seconds: each line's points."""
        now = time.time()
        span = {"start": f"{now - PATIENCE:.3f}", "end": f"{now:.3f}", "step": f"{INTERVAL}ms"}
        found: list[dict[str, Any]] = self.ask("query_range", query=query, **span)["result"]
        return found

    def values(self, label: str, match: str) -> list[str]:
        """Return the values that a label has in the series that `match` chooses."""
        found: list[str] = self.ask(f"label/{label}/values", **{"match[]": match})
        return found


@contextlib.contextmanager
def prometheus(folder: Path, targets: Sequence[str]) -> Iterator[Prometheus]:
    """Run one that looks at `targets`, each ADDRESS:PORT, and keeps what it has in `folder`."""
    job = {"job_name": "vfio-user-bridge", "static_configs": [{"targets": targets}]}
    often = {"scrape_interval": f"{INTERVAL}ms", "scrape_timeout": f"{INTERVAL}ms"}
    config, log = folder / "prometheus.yml", folder / "log"
    config.write_text(json.dumps({"global": often, "scrape_configs": [job]}))  # it is YAML, too
    command = (
        program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    )
    with log.open("w") as file, subprocess.Popen(command, stderr=file) as process:
        try:
            yield Prometheus(_address(process, log))
        finally:
            process.kill()  # what it has kept is nobody's to read again


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return where it listens, once it is ready."""
    deadline = time.monotonic() + PATIENCE
    while "Server is ready" not in (text := log.read_text()):
        assert process.poll() is None, text
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
    found = re.search(r'msg="Listening on" address=(\S+)', text)
    assert found, text
    return found[1]
