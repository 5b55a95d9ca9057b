# SPDX-License-Identifier: BSD-3-Clause
"""A bridge is replaced under systemd while a client has its device: by a reload, and by SIGKILL."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration import devices, page
from integration.away import Away
from integration.inside import edu
from integration.inside.bridge import RemoteDevice
from vfio_user_bridge.kernel import pci

from . import units
from .units import client, drop_in, journal, prop, service, systemctl
from .waiting import until

DEVICE = devices.EDU_ALONE
WITH_DRIVER = devices.RTL8139
UNIT = service(DEVICE)
TIMES = 5
RULE = '[[rule]]\nregion = "config"\noffset = 0x0c\naccess = "write"\naction = "deny"\n'
PAUSE = 0.02  # seconds between two questions; more would take the time that the next bridge needs


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    page.run("systemd.md", {}, section="Once")


@pytest.fixture(autouse=True)
def found_again() -> Iterator[None]:
    with units.found_again():
        yield


@pytest.fixture
def remote() -> Iterator[RemoteDevice]:
    """The client's device."""
    systemctl("start", UNIT)
    with client(DEVICE) as connected:
        yield connected


def main() -> int:
    return units.main_process(UNIT)


def reload() -> None:
    systemctl("reload", UNIT)


def kill() -> None:
    units.kill(UNIT)


def works(remote: RemoteDevice) -> None:
    """It does, and is the client's as it was before: nobody else has come."""
    edu.works(remote)
    until(lambda: prop("StatusText", UNIT) == f"{DEVICE}: pid {os.getpid()}, uid 0")


# ---- The guest keeps its device ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("replace", "restarts", "said"),
    [
        (reload, 0, r"handed over to pid (\d+)"),
        (kill, TIMES, f"going on with its clients: ({DEVICE})"),
    ],
)
def test_the_client_cannot_tell(
    replace: Callable[[], None],
    restarts: int,
    said: str,
    remote: RemoteDevice,
    capsys: pytest.CaptureFixture[str],
) -> None:
    works(remote)
    before, pids, longest = journal(), [main()], []
    for _ in range(TIMES):
        away = Away(remote.wire, pause=PAUSE)
        away.longest()  # until now
        replace()
        longest.append(away.longest())
        away.close()
        works(remote)
        pids.append(main())
    assert len(set(pids)) == TIMES + 1
    assert int(prop("NRestarts", UNIT)) == restarts
    lines = journal().removeprefix(before)
    expected = [str(pid) for pid in pids[1:]] if replace is reload else [DEVICE] * TIMES
    assert re.findall(said, lines) == expected
    assert "client gone" not in lines
    with capsys.disabled():
        print(f"\n{replace.__name__}: away for", ", ".join(f"{t * 1e3:.0f}" for t in longest), "ms")


def test_hung_it_is_gone_on_with() -> None:
    drop_in(UNIT, "[Service]", "WatchdogSec=10s")
    systemctl("start", UNIT)
    with client(DEVICE) as remote:
        works(remote)
        systemctl("kill", "--signal=STOP", UNIT)
        works(remote)
    assert (prop("NRestarts", UNIT), prop("WatchdogUSec", UNIT)) == ("1", "10s")


def test_a_version_that_cannot_take_over() -> None:
    """Its policy has become none: the one that runs goes on."""
    policy = Path("/etc/vfio-user-bridge.toml")
    policy.write_text(RULE)
    try:
        drop_in(UNIT, "[Service]", f"Environment='OPTIONS=--policy {policy}'")
        systemctl("start", UNIT)
        before = main()
        with client(DEVICE) as remote:
            policy.write_text("[[rule")
            with pytest.raises(subprocess.CalledProcessError):
                reload()
            assert (prop("ActiveState", UNIT), main()) == ("active", before)
            works(remote)
            assert f"{policy} isn't TOML" in journal()
            policy.write_text(RULE)
            reload()
            assert main() != before
            works(remote)
    finally:
        policy.unlink()


def test_page(remote: RemoteDevice) -> None:
    page.run("systemd.md", {"0000:01:10.1": DEVICE}, section="Upgrades and crashes")
    works(remote)


# ---- The host gets it back --------------------------------------------------------------------


@pytest.mark.parametrize("earlier", ["", "reload", "kill --signal=KILL"])
def test_stopped_it_gives_back_what_systemd_keeps(earlier: str) -> None:
    """Also one that took over, which has all its time, and one that is yet to be started again."""
    unit, driver, alive = service(WITH_DRIVER), pci.find(WITH_DRIVER).driver, "kill" not in earlier
    drop_in(unit, "[Service]", "RestartSec=10min", "RestartSteps=", "RestartMaxDelaySec=infinity")
    systemctl("start", unit)
    before = journal()
    with client(WITH_DRIVER) as remote:
        if earlier:
            systemctl(*earlier.split(), unit)
            until(lambda: prop("SubState", unit) == ("running" if alive else "auto-restart"))
        assert int(prop("NFileDescriptorStore", unit)) > 3
        systemctl("stop", unit)
        remote.wire.wait_until_hung_up()
    until(lambda: pci.find(WITH_DRIVER).driver == driver)
    assert (prop("NFileDescriptorStore", unit), prop("SubState", unit)) == ("0", "dead")
    assert ("stopping: SIGTERM" in journal().removeprefix(before)) == alive
