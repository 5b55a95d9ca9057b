# SPDX-License-Identifier: BSD-3-Clause
"""The bridge as its users start it: a process, serving a model on a socket."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from vfio_user_bridge import qemu
from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.libvfio_user import library

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session", params=["native", "libvfio-user"])
def edu_socket(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The socket of one `serve model:edu` for all tests, so that each meets what the last left.

    There is one of each engine.
    """
    if request.param == "libvfio-user":
        try:
            library.load()
        except BridgeError as missing:
            pytest.skip(str(missing))
    path = tmp_path_factory.mktemp("edu") / "edu.sock"
    command = [sys.executable, "-m", "vfio_user_bridge", "serve", "model:edu"]
    command += ["--socket-path", str(path), "--engine", request.param]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as bridge:
        assert bridge.stdout is not None
        assert bridge.stdout.readline(), "the bridge ended before its socket was ready"
        yield path
        bridge.terminate()
        assert bridge.wait(10) == 0
    assert not path.exists()


@pytest.fixture(scope="session")
def vfio_user_edu(edu_socket: Path) -> str:
    """What `-device` needs to be that model, in slot 4."""
    return json.dumps({**qemu.device(edu_socket), "addr": "4.0"})
