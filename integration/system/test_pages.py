# SPDX-License-Identifier: BSD-3-Clause
"""The pages of docs/users about devices do what they show, and so do the guests in them.

A page's QEMU has the guest's console on its terminal. What is typed there is what the page shows
behind the prompt "guest# ": a small guest types it itself.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration import devices, guest, page
from integration.guests_kernel import CARRIED
from integration.inside.linux_script import program

SYSFS = Path("/sys/bus/pci/devices")
PROMPT = "guest# "
#: what guests of pages run on, and how much memory they have; ours have less
HOST = "-accel kvm -nographic disk.qcow2"
MEMORY = {"4G": "256M"}
GUEST_TIMEOUT = 600.0  # seconds, of a machine in a machine on a busy host

#: What an installed guest has done and has there when somebody logs in: its network is up and
#: reaches the gateway, or it is no guest to show.
INSTALLED = """
lspci() { /bin/ld-linux-x86-64.so.2 --library-path /bin /bin/lspci -i /pci.ids "$@" 2>/dev/null; }
poweroff() { busybox poweroff -f; }
echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore
number=10
for card in /sys/class/net/eth*; do
    [ -e $card ] || continue
    name=$(basename $card)
    ip link set $name up
    ip address add 10.0.2.$number/24 dev $name
    number=$(($number + 1))
    for try in $(seq 300); do [ "$(cat $card/carrier)" = 1 ] && break; sleep 0.1; done
    ping -I $name -c 1 -W 20 10.0.2.2 || poweroff
done
echo
"""
NETWORK = {"192.0.2.1": "10.0.2.2"}


def run(name: str, here: Mapping[str, str], folder: Path) -> None:
    """Run page `name`."""
    here = {**here, **MEMORY}
    typed = re.findall(rf"^{PROMPT}(.*)$", page.read(name, here), re.MULTILINE)
    script = "".join(f"echo {shlex.quote(PROMPT + line)}\n{line}\n" for line in typed)
    files = {**program("/usr/bin/lspci"), "pci.ids": Path("/usr/share/misc/pci.ids").read_bytes()}
    initramfs = folder / "initramfs"
    initramfs.write_bytes(guest.initramfs(INSTALLED + script, files=files))
    boot = shlex.join([*guest.boot_arguments(CARRIED, initramfs), "-serial", "stdio"])
    page.run(name, {**here, HOST: boot}, GUEST_TIMEOUT)


@contextmanager
def given_back(*bdfs: str) -> Iterator[None]:
    """Leave devices to their drivers also where a page fails half-way."""
    try:
        yield
    finally:
        subprocess.run(("vfio-user-bridge", "unbind", *bdfs), check=True)


def iommu_group(bdf: str) -> str:
    return (SYSFS / bdf / "iommu_group").readlink().name


def listed_group(bdf: str) -> dict[str, str]:
    """Return the number of the device's group as `list` shows it, by that of the pages."""
    return {"   14  ": f"{iommu_group(bdf):>5}  "}


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
        subprocess.run(("udevadm", "control", "--reload"), check=True)  # its rule was away


def test_guide() -> None:
    number = iommu_group(devices.E1000E)
    with given_back(devices.E1000E):
        here = {"/dev/vfio/14": f"/dev/vfio/{number}", "group 14 is": f"group {number} is"}
        page.run("guide.md", here)


def test_security() -> None:
    page.run("security.md", {})


def test_policy(tmp_path: Path) -> None:
    """With all rules of its examples in one file."""
    rules = re.findall(
        r"^```toml\n(.*?)^```$", page.read("policy.md", {}), re.MULTILINE | re.DOTALL
    )
    policy = tmp_path / "nic.toml"
    policy.write_text("\n".join(rules))
    subprocess.run(("vfio-user-bridge", "bind", devices.E1000E), check=True)
    with given_back(devices.E1000E):
        page.run("policy.md", {"0000:01:00.0": devices.E1000E, "/etc/nic.toml": str(policy)})


def test_first_device(tmp_path: Path) -> None:
    with given_back(devices.E1000E):
        here = {**listed_group(devices.E1000E), **NETWORK}
        run("first-device.md", here, tmp_path)


def test_gpu(tmp_path: Path) -> None:
    """With a network card of that shape."""
    gpu, audio = devices.E1000_PORT_PAIR
    card = "Ethernet controller: Intel Corporation 82540EM Gigabit Ethernet Controller"
    amd = "Advanced Micro Devices, Inc. [AMD/ATI]"
    navi = f"VGA compatible controller: {amd} Navi 23 [Radeon RX 6600/6600 XT/6600M]"
    sound = f"Audio device: {amd} Navi 21/23 HDMI/DP Audio Controller"
    here = {
        **listed_group(gpu),
        "group 14": f"group {iommu_group(gpu)}",
        "0000:01:00": gpu.removesuffix(".0"),
        "DRIVER         SERVE": "DRIVER  SERVE",
        "amdgpu         bind": "e1000   bind",
        "snd_hda_intel  bind": "e1000   bind",
        "amdgpu": "e1000",
        "snd_hda_intel": "e1000",
        navi: card,
        sound: card,
    }
    with given_back(gpu, audio):
        run("gpu.md", here, tmp_path)


def test_nic_vf(tmp_path: Path) -> None:
    card = SYSFS / devices.IGB_HOST
    [interface] = (card / "net").iterdir()
    here = {
        "0000:01:": devices.IGB_HOST.removesuffix("00.0"),
        "enp1s0": interface.name,
        "enp0s2": "eth0",
        **NETWORK,
    }
    try:
        run("nic-vf.md", here, tmp_path)
    finally:
        (card / "sriov_numvfs").write_text("0")
        (card / "sriov_drivers_autoprobe").write_text("1")
        subprocess.run(("ip", "link", "set", interface.name, "down"), check=True)


def test_nvme(tmp_path: Path) -> None:
    disk = devices.disk(devices.NVME_PORT)
    here = {
        **listed_group(devices.NVME_PORT),
        "0000:01:00.0": devices.NVME_PORT,
        "Samsung Electronics Co Ltd NVMe SSD Controller PM9A1/PM9A3/980PRO": "Red Hat, Inc."
        " QEMU NVM Express Controller",
        "nvme1n1": disk.name,
    }
    subprocess.run(("mkfs.ext4", "-q", disk), check=True)
    subprocess.run(("mount", disk, "/srv"), check=True)
    Path("/srv/note").write_text("written by the host\n")
    try:
        with given_back(devices.NVME_PORT):
            run("nvme.md", here, tmp_path)
    finally:
        subprocess.run(("umount", "/srv"), check=False)
        subprocess.run(("wipefs", "--all", disk), check=True)
