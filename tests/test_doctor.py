# SPDX-License-Identifier: BSD-3-Clause
"""`doctor` as a whole: what it says, whatever the host's files have in store for it."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_host import FILES, GIB, FakeHost, as_nobody
from vfio_user_bridge import syscall_filter
from vfio_user_bridge.doctor import DEVICE_CHECKS, HOST_CHECKS, examine
from vfio_user_bridge.kernel import landlock

COMMAND = (sys.executable, "-m", "vfio_user_bridge", "doctor")
#: what a host may have or not
EXTRAS = {"landlock", "seccomp", "msgpack", "metrics", "terminal", "plot"}


@pytest.fixture
def fake(public_folder: Path) -> FakeHost:
    return FakeHost(public_folder)


def test_a_host_that_can_serve(fake: FakeHost) -> None:
    found = [finding for finding in examine(fake.host) if finding.check not in EXTRAS]
    assert [finding.text for finding in found if finding.level != "ok"] == []
    # Nothing is said of a folder for sockets unless one is named.
    assert {f.check for f in found} == {*HOST_CHECKS, *DEVICE_CHECKS} - {*EXTRAS, "socket-dir"}


@pytest.mark.parametrize("change", ["unreadable", "senseless", "missing", "a folder"])
@pytest.mark.parametrize("name", FILES)
def test_no_file_upsets_it(fake: FakeHost, name: str, change: str) -> None:
    match change:
        case "unreadable":
            fake.path(name).chmod(0)
        case "senseless":
            fake.path(name).write_bytes(b"\xff\n\0 MemTotal: Max locked memory")
        case _:
            fake.remove(name)
            if change == "a folder":
                fake.path(name).mkdir()
    fake.asked(memory=4 * GIB)
    fake.remove("bin")  # running QEMU takes time
    with as_nobody():
        found = list(examine(fake.host))
    assert {finding.check for finding in found} >= {"iommu", "modules", "memory", "device-use"}
    assert all("\n" not in finding.text and finding.text for finding in found)


def test_what_cannot_be_looked_at_is_said(fake: FakeHost) -> None:
    fake.path("proc/meminfo").chmod(0)
    with as_nobody():
        (finding,) = fake.findings("memory")
    path = fake.path("proc/meminfo")
    assert (finding.level, finding.text) == ("warning", f"can't look at {path}: Permission denied")
    assert finding.advice == "look again as root"


# ---- What can be done without ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "module", "package"),
    [
        ("msgpack", "msgpack", "python3-msgpack, or by pip msgpack"),
        ("metrics", "prometheus_client", "python3-prometheus-client"),
        ("terminal", "rich", "python3-rich"),
        ("plot", "matplotlib", "python3-matplotlib"),
    ],
)
def test_packages(
    fake: FakeHost, check: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.write(f"site/{module}/__init__.py", "raise AssertionError('it need not be imported')")
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "path", [str(fake.path("site"))])
    (finding,) = fake.findings(check)
    assert finding.level == "ok"
    monkeypatch.setattr(sys, "path", [])
    (finding,) = fake.findings(check)
    assert (finding.level, package in finding.advice) == ("warning", True)


def test_confinement_is_as_serve_finds_it(fake: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def levels() -> list[str]:
        return [fake.findings(check)[0].level for check in ("landlock", "seccomp")]

    def absent() -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(landlock, "abi", lambda: 7)
    monkeypatch.setattr(syscall_filter, "binding", lambda: syscall_filter)
    assert levels() == ["ok", "ok"]
    monkeypatch.setattr(landlock, "abi", absent)
    monkeypatch.setattr(syscall_filter, "binding", lambda: None)
    assert levels() == ["warning", "warning"]


# ---- The command ----------------------------------------------------------------------------


def test_the_names_are_documented() -> None:
    guide = (Path(__file__).parents[1] / "docs/users/guide.md").read_text()
    section = guide.partition("\n## doctor\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([a-z-]+)`", section, re.MULTILINE) == [*HOST_CHECKS, *DEVICE_CHECKS]


def test_this_host() -> None:
    """Whatever host this is, the exit status is that of what is said."""
    done = subprocess.run([*COMMAND, "--json"], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert {finding["check"] for finding in found} >= {"iommu", "modules", "memory", "device"}
    problems = [finding for finding in found if finding["level"] == "problem"]
    assert done.returncode == bool(problems)
    assert done.stderr.startswith("vfio-user-bridge: this host can't serve") == bool(problems)
    groups = any(Path("/sys/kernel/iommu_groups").glob("*"))
    assert any(problem["check"] == "iommu" for problem in problems) != groups

    shown = subprocess.run(COMMAND, capture_output=True, text=True, check=False).stdout
    for finding in found:
        if finding["check"] != "memory":  # some has been taken meanwhile
            assert f"{finding['level']:8} {finding['text']}\n" in shown
        for mend in (finding["advice"], finding["command"] and f"# {finding['command']}"):
            assert not mend or f"\n         {mend}\n" in shown
