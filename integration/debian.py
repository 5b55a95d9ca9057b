# SPDX-License-Identifier: BSD-3-Clause
"""What things are built from and with: a Debian suite, its mirror, and the host's tools."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from integration.progress import StepError, which

if TYPE_CHECKING:
    from collections.abc import Mapping

    from integration.progress import LoggedStep

SUITE = "trixie"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def host_packages(step: LoggedStep, tools: Mapping[str, str]) -> None:
    """Install on the host, with apt-get, the tools that building takes and that it lacks.

    :param tools: for each command, the Debian package that has it.
    :raise StepError: not root (which building itself takes too), or apt-get failed.
    """
    missing = sorted({package for tool, package in tools.items() if not which(tool)})
    if os.geteuid():
        raise StepError(f"{step.what}: not root; run this as root")
    if missing or not _mirror():
        step.run("apt-get", "update")
    if missing:
        step.run("apt-get", "install", "--yes", "--no-install-recommends", *missing)


def mirror(step: LoggedStep) -> str:
    """Return the URI that the host's own apt gets Debian from.

    :raise StepError: it has none.
    """
    uri = _mirror()
    if not uri:
        raise StepError(
            f"{step.what}: apt on this host has no Debian source; add one and try again"
        )
    return uri


def _mirror() -> str:
    """Return the URI that the host's own apt gets Debian from, or "" if it has none."""
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages",
         "Label: Debian"],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    return targets.stdout.partition("\n")[0]
