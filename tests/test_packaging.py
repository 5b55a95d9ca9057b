# SPDX-License-Identifier: BSD-3-Clause
"""What setup.cfg puts into the wheel beside the package. integration/system installs it."""

from __future__ import annotations

import configparser
import json
from pathlib import Path

from vfio_user_bridge.commands import PROGRAM

TOP = Path(__file__).parents[1]
#: folders whose files are all for the host's other programs
FOLDERS = (
    "docs/man",
    "integration/bash",
    "integration/grafana",
    "integration/libvirt",
    "integration/systemd",
    "integration/vfio-user",
    "integration/zsh",
)


def setup() -> configparser.ConfigParser:
    config = configparser.ConfigParser(interpolation=None)
    config.read(TOP / "setup.cfg")
    return config


def test_no_file_is_forgotten() -> None:
    patterns = " ".join(setup()["options.data_files"].values()).split()
    listed = [str(path.relative_to(TOP)) for pattern in patterns for path in TOP.glob(pattern)]
    there = [path for folder in FOLDERS for path in (TOP / folder).iterdir()]
    assert sorted(listed) == sorted(str(path.relative_to(TOP)) for path in there)


def test_description_for_managers() -> None:
    """As QEMU's docs/interop/vhost-user.json; the specification has no schema for vfio-user yet."""
    (path,) = (TOP / "integration/vfio-user").iterdir()
    assert path.name == f"50-{PROGRAM}.json"
    assert f"integration/vfio-user/{path.name}" == setup()["options.data_files"]["share/vfio-user"]
    description = json.loads(path.read_text())
    assert description.keys() == {"description", "type", "binary"}
    assert description["type"] == "vfio-pci"  # as --print-capabilities says
    assert description["binary"] == f"/usr/bin/{PROGRAM}"
    assert f"{PROGRAM} =" in setup()["options.entry_points"]["console_scripts"]


def test_units_run_the_command_that_a_package_installs() -> None:
    for unit in (TOP / "integration/systemd").glob("*.service"):
        words = [line.split("=", 1)[1].split()[0] for line in commands(unit)]
        assert set(words) <= {f"/usr/bin/{PROGRAM}", "udevadm"}, unit
        assert f"/usr/bin/{PROGRAM}" in words


def commands(unit: Path) -> list[str]:
    return [line for line in unit.read_text().splitlines() if line.startswith("Exec")]
