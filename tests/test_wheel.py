# SPDX-License-Identifier: BSD-3-Clause
"""Whoever builds a commit's wheel gets the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from integration import wheel


def git(*words: str) -> str:
    command = ("git", "-C", str(wheel.CHECKOUT), *words)
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def built(folder: Path, umask: int, modified: int, **environment: str) -> Path:
    """Build it from a checkout in `folder` that was made under `umask`, at the time `modified`."""
    checkout = folder / "checkout"
    shutil.copytree(wheel.CHECKOUT, checkout, ignore=shutil.ignore_patterns(*wheel.LEFT_OUT))
    for path in checkout.rglob("*"):
        path.chmod(path.stat().st_mode & ~umask)
        os.utime(path, (modified, modified))
    environment = {**os.environ, "GIT_DIR": git("rev-parse", "--absolute-git-dir"), **environment}
    environment.pop(wheel.DATE, None)
    command = (sys.executable, "-m", "integration.wheel", folder)
    subprocess.run(command, cwd=checkout, env=environment, umask=umask, check=True)
    [path] = folder.glob("*.whl")
    return path


def test_the_same_bytes(tmp_path: Path) -> None:
    here = built(tmp_path / "here", 0o022, 1_000_000_000, TZ="UTC", LC_ALL="C.UTF-8")
    there = built(tmp_path / "there/too", 0o077, 2_000_000_000, TZ="Asia/Kathmandu", LC_ALL="C")
    assert here.name == there.name
    assert here.read_bytes() == there.read_bytes()
    # The clock is the same for both builds, so that it isn't in there is to be seen otherwise.
    commit = time.gmtime(int(git("log", "-1", "--format=%ct")))
    with zipfile.ZipFile(here) as entries:
        dates = {entry.date_time for entry in entries.infolist()}
        names = set(entries.namelist())
    assert dates == {(*commit[:5], commit.tm_sec // 2 * 2)}  # zip has every second second
    package = wheel.CHECKOUT / "vfio_user_bridge"
    modules = {str(path.relative_to(wheel.CHECKOUT)) for path in package.rglob("*.py")}
    data = {"vfio_user_bridge/py.typed", "vfio_user_bridge/trace/registers/pci.toml"}
    assert modules | data <= names
    [beside] = (name for name in names - modules if name.endswith(".py"))
    assert beside.endswith("/share/vfio-user-bridge/libvirt/hook.py")
