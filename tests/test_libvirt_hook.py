# SPDX-License-Identifier: BSD-3-Clause
"""libvirt's hook as libvirt runs it: what it asks of systemd, which is a script here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vfio_user_bridge.libvirt.domain import bridged

from .test_libvirt import SOURCE, domain, hostdev

HOOK = Path(__file__).parents[1] / "integration/libvirt/hook.py"
FOLDER = Path("/run/vfio-user-bridge")
LABEL = "<seclabel type='dynamic' model='dac'><label>+64055:+64055</label></seclabel>"
MANAGED = hostdev().replace("type='pci'", "type='pci' managed='yes'", 1)
OTHER = hostdev("", SOURCE.replace("function='1'", "function='2'"))

#: notes its arguments, one a line, and does what files beside it want
TOOL = """\
#!/bin/sh
printf '%s\\n' "${0##*/}" "$@" '' >>"${0%/*}/asked"
cat "${0%/*}/${0##*/} says" 2>/dev/null
[ ! -e "${0%/*}/${0##*/} fails" ]
"""


class Host:
    """The commands that the hook finds, and what they were asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("systemd-run", "systemctl", "journalctl", "vfio-user-bridge"):
            (folder / name).write_text(TOOL)
            (folder / name).chmod(0o755)

    def fails(self, name: str) -> None:
        (self._folder / f"{name} fails").touch()

    def says(self, name: str, text: str) -> None:
        (self._folder / f"{name} says").write_text(text)

    def hook(self, operation: str, xml: str, name: str = "vm") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            (sys.executable, HOOK, name, operation, "begin", "-"),
            input=xml,
            env={"PATH": f"{self._folder}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def asked(self) -> list[list[str]]:
        path = self._folder / "asked"
        every = path.read_text().split("\n\n")[:-1] if path.exists() else []
        return [one.splitlines() for one in every]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def xml(*hostdevs: str, label: str = LABEL) -> str:
    return bridged(domain("".join(hostdevs), label), FOLDER).text


def properties(words: list[str]) -> list[str]:
    option = "--property="
    return [word.removeprefix(option) for word in words if word.startswith(option)]


def test_start(host: Host, tmp_path: Path) -> None:
    assert host.hook("start", xml(MANAGED, OTHER)).returncode == 0
    (tool, *bind), (same_tool, *words) = host.asked
    assert tool == same_tool == "systemd-run"
    program = str(tmp_path / "vfio-user-bridge")
    holder = "vfio-user-bridge-libvirt-vm-bind.service"
    assert f"--unit={holder}" in bind
    assert "--service-type=oneshot" in bind
    assert {f"ExecStop={program} unbind 0000:01:10.1", "RemainAfterExit=yes"} < {*properties(bind)}
    assert bind[-3:] == [program, "bind", "0000:01:10.1"]
    assert "--unit=vfio-user-bridge-libvirt-vm.service" in words
    assert "--service-type=notify" in words
    serve = [program, "serve", "0000:01:10.1", "0000:01:10.2", "--socket-dir", str(FOLDER)]
    assert words[-len(serve) :] == serve
    sockets = f"{FOLDER}/0000:01:10.1.sock {FOLDER}/0000:01:10.2.sock"
    owned = f"ExecStartPost=+/bin/chown +64055:+64055 {sockets}"
    assert {owned, f"Requires={holder}", f"After={holder}"} < {*properties(words)}


def test_start_of_what_is_not_managed(host: Host) -> None:
    """And where QEMU runs as root."""
    assert host.hook("start", xml(OTHER, label="")).returncode == 0
    ((_, *words),) = host.asked
    assert not [told for told in properties(words) if told.startswith(("Exec", "Requires"))]


def test_killed_it_is_gone_on_with(host: Host) -> None:
    """As in the unit that we have for one device."""
    host.hook("start", xml(OTHER))
    ((_, *words),) = host.asked
    (unit,) = HOOK.parents[1].glob("systemd/vfio-user-bridge@.service")
    kept = ("FileDescriptorStoreMax", "StartLimit", "Restart", "Limit")
    expected = {line for line in unit.read_text().splitlines() if line.startswith(kept)}
    assert len(expected) == 10
    assert expected < {*properties(words)}


def test_start_fails(host: Host) -> None:
    """libvirt shows what the hook complains of: what the bridge last did."""
    host.fails("systemd-run")
    host.says("journalctl", "vfio-user-bridge: one\nvfio-user-bridge: other\nx: vfio-pci -> igb\n")
    done = host.hook("start", xml(MANAGED))
    assert (done.returncode, done.stderr) == (1, "vfio-user-bridge: other\n")


def test_options_of_the_domain(host: Host, tmp_path: Path) -> None:
    """Those that its <metadata> has go to `serve`; with a control socket, it can be upgraded."""
    more = "--control '/run/vfio-user-bridge/my vm.control' --metrics /run/vfio-user-bridge/metrics"
    described = xml(MANAGED).replace(" sockets=", f' options="{more}" sockets=')
    assert more in described
    assert host.hook("start", described).returncode == 0
    *_, run = host.asked
    assert run[-4:] == [
        *("--control", "/run/vfio-user-bridge/my vm.control"),
        *("--metrics", "/run/vfio-user-bridge/metrics"),
    ]
    reload = f"{tmp_path}/vfio-user-bridge upgrade --control '/run/vfio-user-bridge/my vm.control'"
    assert f"ExecReload={reload}" in properties(run)


def test_release(host: Host) -> None:
    """The bridge goes first."""
    host.fails("systemctl")  # it never started
    assert host.hook("release", xml(MANAGED)).returncode == 0
    unit = "vfio-user-bridge-libvirt-vm"
    stopped = (f"{unit}.service", f"{unit}-bind.service")
    assert host.asked == [["systemctl", "--quiet", "stop", each] for each in stopped]


def test_a_device_that_cannot_be_had(host: Host) -> None:
    """Its bridge isn't started."""
    host.fails("systemd-run")
    assert host.hook("start", xml(MANAGED)).returncode == 1
    assert [asked[0] for asked in host.asked].count("systemd-run") == 1


def test_names_of_domains(host: Host) -> None:
    host.hook("release", xml(MANAGED), "my vm-1.ä@x")
    assert host.asked[0][-1] == r"vfio-user-bridge-libvirt-my\x20vm-1.\xc3\xa4\x40x.service"


@pytest.mark.parametrize("operation", ["prepare", "started", "stopped", "reconnect", "migrate"])
def test_other_operations(operation: str, host: Host) -> None:
    done = host.hook(operation, xml(MANAGED))
    assert (done.returncode, done.stdout, host.asked) == (0, "", [])


@pytest.mark.parametrize("operation", ["start", "release"])
def test_other_domains(operation: str, host: Host) -> None:
    assert host.hook(operation, domain(MANAGED)).returncode == 0
    assert host.asked == []
