# SPDX-License-Identifier: BSD-3-Clause
"""What `doctor` finds of devices."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from tests.fake_host import (
    NIC,
    PORT,
    TWIN,
    Change,
    FakeHost,
    as_nobody,
    each,
    found,
    has,
    lacks,
    nothing,
    says,
)

GROUP = "dev/vfio/12"
METHODS = f"sys/bus/pci/devices/{NIC}/reset_method"
MOUNT = "22 27 254:0 / /srv rw - ext4 /dev/vda rw\n"


@pytest.fixture
def fake(public_folder: Path) -> FakeHost:
    return FakeHost(public_folder)


def config(data: bytes) -> Change:
    return lambda fake: fake.path(f"sys/bus/pci/devices/{NIC}/config").write_bytes(data)


def of_the_host(fake: FakeHost) -> None:
    fake.sysfs.detach(NIC)
    fake.sysfs.attach(NIC, "igb")


def twin(fake: FakeHost) -> None:
    fake.sysfs.device(TWIN, driver="igb", group=12)


def mounted(fake: FakeHost) -> None:
    fake.sysfs.disk("vda", "254:0", NIC)
    fake.write("proc/self/mountinfo", MOUNT)


#: Linux before 5.15
OLD_KERNEL = each(lacks(METHODS), has(f"sys/bus/pci/devices/{NIC}/reset"))
DEAD = config(b"\xff" * 64)
#: A virtual function's vendor and device are all ones in its own config space; command follows.
VIRTUAL_FUNCTION = b"\xff" * 4 + bytes(60)


@pytest.mark.parametrize(
    ("check", "change", "level", "seen", "mend"),
    [
        ("device-answers", nothing, "ok", f"{NIC} answers", ""),
        ("device-answers", config(VIRTUAL_FUNCTION), "ok", "answers", ""),
        ("device-answers", DEAD, "problem", "doesn't answer", "/sys/bus/pci/rescan"),
        ("device", nothing, "ok", f"group 12, beside {PORT} (pcieport)", ""),
        ("device", of_the_host, "problem", "is bound to igb", f"vfio-user-bridge bind {NIC}"),
        ("device", twin, "problem", f"{TWIN} is bound to igb", f"bind --group {NIC}"),
        ("device-group", nothing, "ok", "may open /dev/vfio/12", ""),
        ("device-group", lacks(GROUP), "problem", "no /dev/vfio/12", "udev"),
        ("device-group", lambda fake: fake.path(GROUP).chmod(0), "problem", "may not", "chown"),
        ("device-reset", nothing, "ok", "flr, bus", ""),
        ("device-reset", has(METHODS, "pm bus\n"), "ok", "pm, bus", ""),
        (
            "device-reset",
            each(twin, has(METHODS, "pm bus\n")),
            *("warning", f"is there: {TWIN}", "serve all of these by one process"),
        ),
        ("device-reset", each(twin, has(METHODS, "flr bus\n")), "ok", "flr, bus", ""),
        ("device-reset", has(METHODS, "pm\n"), "warning", "change of power state", "let no guest"),
        ("device-reset", has(METHODS, "device_specific bus\n"), "ok", "device_specific", ""),
        ("device-reset", lacks(METHODS), "warning", "can't be reset", "let no guest"),
        ("device-reset", OLD_KERNEL, "ok", "doesn't tell how", ""),
        ("device-use", nothing, "ok", "nothing mounted or up", ""),
        ("device-use", mounted, "problem", "vda is mounted on /srv", "unmount it first"),
        (
            "device-use",
            lambda fake: fake.sysfs.link("eth0", NIC, "up"),
            *("warning", "eth0 is up", "takes it from the host"),
        ),
    ],
)  # fmt: skip
def test_check(
    fake: FakeHost, check: str, change: Change, level: str, seen: str, mend: str
) -> None:
    findings = found(fake, check, change)
    assert says(findings, level, seen, mend), findings
    assert {finding.device for finding in findings} == {NIC}


def test_a_group_that_somebody_has(fake: FakeHost) -> None:
    fd = os.open(fake.path(GROUP), os.O_RDWR)
    try:
        (finding,) = fake.findings("device-group", NIC)
    finally:
        os.close(fd)
    assert finding.level == "warning"
    assert f"(pid {os.getpid()})" in finding.text


def test_who_may_open_the_group(fake: FakeHost) -> None:
    fake.path(GROUP).chmod(0)
    with as_nobody():
        user = pwd.getpwuid(os.geteuid()).pw_name
        (finding,) = fake.findings("device-group", NIC)
    assert finding.command == f"chown {user} /dev/vfio/12"


def test_what_does_not_answer_is_no_bridge(fake: FakeHost) -> None:
    """As its header type would have it."""
    assert not found(fake, "device", DEAD)


def test_a_device_of_the_hosts_has_no_node(fake: FakeHost) -> None:
    assert not found(fake, "device-group", of_the_host)


def test_without_a_name_those_of_vfio_pci(fake: FakeHost) -> None:
    assert [f.device for f in fake.findings("device")] == [NIC]
    of_the_host(fake)
    (finding,) = fake.findings("device")
    assert (finding.level, finding.device) == ("warning", None)
    assert finding.command == "vfio-user-bridge list"


def test_no_such_device(fake: FakeHost) -> None:
    first, second = fake.findings("device", "ffff:ff:1f.7", NIC)
    assert (first.level, first.device) == ("problem", "ffff:ff:1f.7")
    assert "there is no such PCI device" in first.text
    assert second.level == "ok"
