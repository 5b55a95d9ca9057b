# SPDX-License-Identifier: BSD-3-Clause
"""The pages of docs/users about devices do what they show."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration import devices, page

SYSFS = Path("/sys/bus/pci/devices")


@contextmanager
def given_back(*bdfs: str) -> Iterator[None]:
    """Leave devices to their drivers also where a page fails half-way."""
    try:
        yield
    finally:
        subprocess.run(("vfio-user-bridge", "unbind", *bdfs), check=True)


def iommu_group(bdf: str) -> str:
    return (SYSFS / bdf / "iommu_group").readlink().name


def pip(command: str, *arguments: str) -> None:
    subprocess.run(("pip", command, "--break-system-packages", *arguments), check=True)


def test_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """After what this machine has from the same wheel is removed."""
    [wheel] = Path("/results").glob("*.whl")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    files = re.findall(r"^\| `/(.*?)`", page.read("install.md", {}), re.MULTILINE)

    def missing() -> list[str]:
        return [file for file in files if not list(Path("/").glob(file))]

    pip("uninstall", "--yes", "vfio-user-bridge")
    try:
        assert missing() == files != []
        monkeypatch.delenv("DEB_PYTHON_INSTALL_LAYOUT")
        page.run("install.md", {wheel.name: str(wheel)})
        assert missing() == []
    finally:
        monkeypatch.setenv("DEB_PYTHON_INSTALL_LAYOUT", "deb")
        pip("install", "--prefix", "/usr", str(wheel))


def test_guide() -> None:
    number = iommu_group(devices.E1000E)
    with given_back(devices.E1000E):
        here = {"/dev/vfio/14": f"/dev/vfio/{number}", "group 14 is": f"group {number} is"}
        page.run("guide.md", here)
