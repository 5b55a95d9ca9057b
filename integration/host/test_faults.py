# SPDX-License-Identifier: BSD-3-Clause
"""Every system call of serving fails once, at every place where it is made: edu is served on.

So are operators: who looks at its metrics, who looks and acts by its control socket.
"""

from __future__ import annotations

import os
from contextlib import closing, suppress
from http.client import HTTPException
from pathlib import Path

from integration.injection import Survivor, faults
from tests import scrapes
from tests.client import GONE
from tests.running_server import server
from tests.visit import Visit
from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.management.control import ask

#: at how many places the same call fails, at most
MOST = int(os.environ.get("FAULTS", "6"))


def test_every_call_may_fail(tmp_path: Path) -> None:
    path = tmp_path / "edu.sock"
    with server(path, "--socket-path", str(path)) as edu:

        def strict() -> None:
            with closing(edu.connect()) as client:
                Visit(client).pay()

        def forgiving() -> None:
            with suppress(*GONE), closing(edu.connect()) as client:
                Visit(client, forgiving=True).pay()

        survivor = Survivor(edu.process.pid, edu.log, forgiving, strict)
        counts = survivor.calls()
        happened = [fault for fault in faults(counts, most=MOST) if survivor.suffer(fault)]
        edu.stop()
    print(f"{len(happened)} faults of {len({fault.call for fault in happened})} system calls")
    assert {"recvmsg", "sendto", "accept4", "poll"} <= {fault.call for fault in happened}


def test_every_call_for_metrics_may_fail(tmp_path: Path) -> None:
    path = tmp_path / "edu.sock"
    with server(path, "--socket-path", str(path), "--metrics", "127.0.0.1:0") as edu:
        where = scrapes.address(edu)

        def strict() -> None:
            assert scrapes.Scrape(where)("vfio_user_clients_total", device="edu") == 0

        def forgiving() -> None:
            with suppress(OSError, HTTPException):
                scrapes.text(where)

        survivor = Survivor(edu.process.pid, edu.log, forgiving, strict)
        chosen = faults(survivor.calls(), most=MOST, errnos=("ENOMEM",))
        happened = {fault.call for fault in chosen if survivor.suffer(fault)}
        edu.stop()
    assert {"accept4", "poll", "recvfrom", "sendto", "openat"} <= happened


def test_every_call_for_control_may_fail(tmp_path: Path) -> None:
    path, control = tmp_path / "edu.sock", tmp_path / "control"
    with server(path, "--socket-path", str(path), "--control", str(control)) as edu:

        def strict() -> None:
            with suppress(BridgeError):
                ask(control, "stop-recording")  # which another has begun, and left
            file = os.memfd_create("trace")
            try:
                ask(control, "record", files=[file])
                with closing(edu.connect()) as client:
                    Visit(client).pay()
                (device,) = ask(control, "status")["devices"]
                assert device["recording"]["records"] > 0
                ask(control, "stop-recording")
                assert os.fstat(file).st_size > 0
            finally:
                os.close(file)
            ask(control, "drain")
            ask(control, "admit")

        def forgiving() -> None:
            with suppress(BridgeError, AssertionError, *GONE):
                strict()
            with suppress(BridgeError):
                ask(control, "admit")

        survivor = Survivor(edu.process.pid, edu.log, forgiving, strict)
        chosen = faults(survivor.calls(), most=MOST, errnos=("ENOMEM",))
        happened = {fault.call for fault in chosen if survivor.suffer(fault)}
        edu.stop()
    assert {"accept4", "recvmsg", "sendto", "mmap", "ftruncate", "fallocate"} <= happened
