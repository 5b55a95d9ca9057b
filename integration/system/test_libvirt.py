# SPDX-License-Identifier: BSD-3-Clause
"""docs/users/libvirt.md with a real libvirtd, confined by AppArmor as on Debian."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration import devices, guest, page
from integration.guest_shell import SCRIPT, GuestShell
from integration.guests_kernel import CARRIED
from integration.progress import tail
from vfio_user_bridge.kernel.pci import PciDevice

from .waiting import until

CARD = PciDevice(devices.RTL8139)
DRIVER = "8139cp"  # the host's, and the guest's
HERE = {
    "0000:01:10.1": CARD.bdf,
    "0000-01-10.1": CARD.bdf.replace(":", "-"),
    "igbvf": DRIVER,
}
UNIT = "vfio-user-bridge-libvirt-vm.service"
IMAGES = Path("/var/lib/libvirt/images")
CONSOLE = Path("/var/log/libvirt/qemu/vm-console.log")
QEMU_LOG = Path("/var/log/libvirt/qemu/vm.log")
PID_FILE = Path("/run/libvirt/qemu/vm.pid")
PROFILES = ("/etc/apparmor.d/usr.sbin.libvirtd", "/etc/apparmor.d/usr.lib.libvirt.virt-aa-helper")

#: the card behind a port of its own, a port that is free, a disk
DOMAIN = f"""\
<domain type='qemu'>
  <name>vm</name>
  <memory unit='MiB'>256</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{IMAGES}/kernel</kernel>
    <initrd>{IMAGES}/initramfs</initrd>
    <cmdline>{guest.KERNEL_ARGUMENTS}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom'><model>Nehalem</model></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='pci' index='1' model='pcie-root-port'/>
    <controller type='pci' index='2' model='pcie-root-port'/>
    <controller type='pci' index='3' model='pcie-root-port'/>
    <controller type='usb' model='none'/>
    <disk type='file' device='disk'>
      <source file='{IMAGES}/a'/>
      <target dev='vda' bus='virtio'/>
      <address type='pci' domain='0' bus='2' slot='0' function='0'/>
    </disk>
    <serial type='file'><source path='{CONSOLE}'/></serial>
    <serial type='unix'><source mode='connect' path='{IMAGES}/shell'/></serial>
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <source><address domain='0' bus='0' slot='0x15' function='0'/></source>
      <address type='pci' domain='0' bus='1' slot='0' function='0'/>
    </hostdev>
    <video><model type='none'/></video>
    <memballoon model='none'/>
  </devices>
</domain>
"""
GUEST_CARD = "/sys/bus/pci/devices/0000:01:00.0"
LEASE = "ip link set eth0 up && udhcpc -i eth0 -n -q -s /bin/true"


def run(*command: str) -> str:
    """A command that succeeds; gives what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr + tail(QEMU_LOG)
    return done.stdout


def refused(*command: str) -> str:
    """A command that fails; gives what it complained of."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode, done.stdout
    return done.stderr


@pytest.fixture(scope="module", autouse=True)
def libvirtd() -> Iterator[None]:
    """Confined, and prepared as the page says; as it was afterwards."""
    run("apparmor_parser", "--replace", *PROFILES)
    page.run("libvirt.md", {}, section="Once for a host")
    for name in "abc":
        (IMAGES / name).touch()
        (IMAGES / name).open("r+b").truncate(1 << 20)
    shutil.copy(CARRIED, IMAGES / "kernel")
    (IMAGES / "initramfs").write_bytes(guest.initramfs(SCRIPT))
    yield
    for path in IMAGES.iterdir():
        path.unlink()
    shutil.rmtree("/etc/libvirt/hooks/qemu.d")
    shutil.rmtree("/etc/apparmor.d/abstractions/libvirt-qemu.d")
    run("apparmor_parser", "--remove", *PROFILES)
    run("systemctl", "restart", "libvirtd")


@pytest.fixture
def shell(libvirtd: None) -> Iterator[GuestShell]:  # noqa: ARG001 - which it runs under
    """The domain is defined with the card, bound to its driver; and is gone afterwards."""
    CONSOLE.unlink(missing_ok=True)
    shell = GuestShell(IMAGES / "shell", CONSOLE)
    Path("/run/vm.xml").write_text(DOMAIN)
    run("virsh", "define", "--validate", "/run/vm.xml")
    assert CARD.driver == DRIVER
    yield shell
    subprocess.run(("virsh", "destroy", "vm"), capture_output=True, check=False)
    run("virsh", "undefine", "vm")
    shell.close()
    for log in (CONSOLE, QEMU_LOG):
        sys.stdout.write(tail(log) if log.exists() else "")
    assert given_back()


def given_back() -> bool:
    state = run("systemctl", "show", "--property=LoadState", UNIT)
    return CARD.driver == DRIVER and state == "LoadState=not-found\n"


def where(disk: str, *options: str) -> str:
    """The bus of a disk of the domain."""
    xpath = f"//disk[target/@dev='{disk}']/address"
    return run("virsh", "dumpxml", "vm", "--xpath", xpath, *options).partition("bus=")[2][1:5]


def attach(disk: str, image: str, *options: str) -> tuple[str, ...]:
    return ("virsh", "attach-disk", "vm", f"{IMAGES}/{image}", disk, *options)


class Story:
    """What the guest and the host see between the page's commands."""

    def __init__(self, shell: GuestShell) -> None:
        self._shell = shell
        self._after = {
            "virsh start": self.started,
            'virsh qemu-monitor-command vm \'{"execute": "device_del': self.unplugged,
            'virsh qemu-monitor-command vm \'{"execute": "device_add': self.plugged,
            "virsh destroy": self.destroyed,
        }

    def follow(self, text: str) -> None:
        with page.Shell() as terminal:
            for command in page.parse(text):
                terminal.run(command)
                for start in [start for start in self._after if command.line.startswith(start)]:
                    self._after.pop(start)()
        assert not self._after

    def started(self) -> None:
        self._shell.accept()
        assert CARD.driver == "vfio-pci"
        socket = Path(f"/run/vfio-user-bridge/{CARD.bdf}.sock")
        assert (socket.owner(), socket.stat().st_mode & 0o777) == ("libvirt-qemu", 0o600)
        assert "(enforcing)" in run("virsh", "dominfo", "vm")
        self._shell.await_boot()
        self.in_use()
        self._shell.begin("reboot -f")
        self._shell.await_boot()
        self.in_use()

    def in_use(self) -> None:
        assert self._shell.run(f"cat {GUEST_CARD}/vendor {GUEST_CARD}/device") == "0x10ec\n0x8139"
        assert "lease of 10.0.2." in self._shell.run(LEASE)

    def unplugged(self) -> None:
        until(lambda: self._shell.run(f"ls -d {GUEST_CARD} || true").startswith("ls: "))
        # Its place is empty, and yet libvirt doesn't give it to others, neither now nor later.
        run(*attach("vdb", "b", "--live"))
        assert where("vdb") == "0x03"
        assert "No more available PCI slots" in refused(*attach("vdc", "c", "--live"))
        run(*attach("vdd", "c", "--config"))
        assert where("vdd", "--inactive") == "0x03"

    def plugged(self) -> None:
        until(lambda: self._shell.run(f"ls -d {GUEST_CARD} || true") == GUEST_CARD)
        until(lambda: self._shell.run("[ -e /sys/class/net/eth0 ]; echo $?") == "0")
        self.in_use()

    def destroyed(self) -> None:
        assert given_back()


def test_page(shell: GuestShell) -> None:
    Story(shell).follow(page.read("libvirt.md", HERE))


def bridged(old: str = "", new: str = "") -> None:
    """Have the domain on the bridge, after an edit of what it then is."""
    xml = Path("/run/bridged.xml")
    Path("/run/plain.xml").write_text(run("virsh", "dumpxml", "--inactive", "vm"))
    text = run("vfio-user-bridge", "libvirt-xml", "--domain", "/run/plain.xml")
    assert old in text
    xml.write_text(text.replace(old, new))
    run("virsh", "define", str(xml))


@pytest.mark.usefixtures("shell")
def test_what_is_not_managed_stays_as_it_is() -> None:
    bridged("managed='yes'", "managed='no'")
    said = refused("virsh", "start", "vm")
    assert f"{CARD.bdf} is bound to {DRIVER}; bind to vfio-pci: vfio-user-bridge bind" in said
    assert given_back()


@pytest.mark.usefixtures("shell")
def test_a_failed_start_gives_the_device_back() -> None:
    bridged('"driver":"vfio-user-pci"', '"driver":"no-such-device"')
    assert "no-such-device" in refused("virsh", "start", "vm")
    assert given_back()


@pytest.mark.usefixtures("shell")
def test_a_killed_qemu_gives_the_device_back() -> None:
    bridged()
    run("virsh", "start", "vm")
    assert CARD.driver == "vfio-pci"
    run("kill", f"-{signal.SIGKILL}", PID_FILE.read_text())
    until(given_back)
