# SPDX-License-Identifier: BSD-3-Clause
"""The wheel in an empty tree: all that it brings, in its place, and a command that runs."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vfio_user_bridge import __version__

CHECKOUT = Path(__file__).parents[2]
COMMAND = Path("bin/vfio-user-bridge")
PIP = (
    *(sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--ignore-installed"),
    *("--break-system-packages", "--root-user-action=ignore"),
)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prefix")
    (wheel,) = Path("/results").glob("*.whl")
    subprocess.run((*PIP, f"--prefix={folder}", wheel), check=True)
    return folder


def packages(prefix: Path) -> Path:
    (package,) = prefix.glob("lib/python3*/*-packages/vfio_user_bridge")
    return package.parent


def test_every_file_is_in_its_place(prefix: Path) -> None:
    config = configparser.ConfigParser(interpolation=None)
    config.read(CHECKOUT / "setup.cfg")
    promised = {
        Path(folder, file.name): file.read_bytes()
        for folder, patterns in config["options.data_files"].items()
        for pattern in patterns.split()
        for file in CHECKOUT.glob(pattern)
    }
    ours = packages(prefix)
    there = [path for path in prefix.rglob("*") if path.is_file() and ours not in path.parents]
    found = {path.relative_to(prefix): path.read_bytes() for path in there}
    del found[COMMAND]
    # pip compiles the hook as well, though it isn't imported.
    found = {path: data for path, data in found.items() if path.suffix != ".pyc"}
    assert found == promised


def test_the_command_runs_from_there(prefix: Path) -> None:
    environment = {"PYTHONPATH": str(packages(prefix)), "PATH": os.environ["PATH"]}
    version = (prefix / COMMAND, "--version")
    done = subprocess.run(
        version, env=environment, cwd="/", capture_output=True, text=True, check=True
    )
    assert done.stdout == f"vfio-user-bridge {__version__}\n"
