#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""libvirt's hook for QEMU (https://libvirt.org/hooks.html): a domain's bridge, as long as it runs.

A domain that `vfio-user-bridge libvirt-xml` made has its PCI host devices in its <metadata>. They
get one bridge, a transient unit of systemd, which is started again if it is killed, and goes on.
Another unit takes those that are managed='yes' from their drivers, and gives them back in the end.

libvirtd runs this under its own AppArmor profile: it only reads, and has systemd do the rest.
"""

from __future__ import annotations

import shlex
import shutil
import string
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterable
from xml.etree import ElementTree

PROGRAM = "vfio-user-bridge"
MOVED = "metadata/{urn:vfio-user-bridge:domain:1}hostdevs"

#: Root without capabilities, whose devices are VFIO's alone. Root, for the sake of sysfs.
PROPERTIES = (
    f"SyslogIdentifier={PROGRAM}",
    f"RuntimeDirectory={PROGRAM}",
    "RuntimeDirectoryPreserve=yes",
    "CapabilityBoundingSet=",
    "NoNewPrivileges=yes",
    "DevicePolicy=closed",
    "DeviceAllow=char-vfio rw",
    "DeviceAllow=/dev/vfio/vfio rw",
    "PrivateNetwork=yes",
    "RestrictAddressFamilies=AF_UNIX",
    "ProtectSystem=strict",
    "ProtectHome=yes",
)
BINDING = (
    "Wants=modprobe@vfio_pci.service",
    "After=modprobe@vfio_pci.service",
    "RemainAfterExit=yes",
)
#: As in vfio-user-bridge@.service; but where it can't start, neither does the domain.
SERVING = (
    "LimitMEMLOCK=infinity",
    "LimitCORE=0",
    "LimitNOFILE=524288",
    "FileDescriptorStoreMax=4096",
    "StartLimitIntervalSec=0",
    "Restart=on-failure",
    "RestartSec=1ms",
    "RestartSteps=40",
    "RestartMaxDelaySec=10s",
    "RestartPreventExitStatus=2",
)


def start(unit: str, domain: ElementTree.Element, moved: ElementTree.Element) -> int:
    """Serve the devices, on sockets that belong to the user that QEMU will run as."""
    program = shutil.which(PROGRAM)
    if not program:
        sys.stderr.write(f"{PROGRAM} is not installed, or not in libvirtd's PATH\n")
        return 1
    of_domain = f"of the libvirt domain {domain.findtext('name')}"
    folder = moved.get("sockets", "")
    devices = {address(hostdev): hostdev.get("managed") == "yes" for hostdev in moved}
    managed = [device for device, ours in devices.items() if ours]
    serving = [*SERVING, f"ReadWritePaths=-{folder}"]
    if managed:
        unbind = f"ExecStop={shlex.join((program, 'unbind', *managed))}"
        status = run(
            binding(unit),
            "oneshot",
            f"PCI devices {of_domain}",
            (*BINDING, unbind),
            (program, "bind", *managed),
        )
        if status:
            return status
        serving += [f"Requires={binding(unit)}", f"After={binding(unit)}"]
    label = domain.findtext("seclabel[@model='dac']/label")
    if label:
        sockets = [f"{folder}/{device}.sock" for device in devices]
        serving.append(f"ExecStartPost=+{shlex.join(('/bin/chown', label, *sockets))}")
    options = shlex.split(moved.get("options", ""))
    control = ArgumentParser(add_help=False)
    control.add_argument("--control")
    path = control.parse_known_args(options)[0].control
    if path:
        serving.append(f"ExecReload={shlex.join((program, 'upgrade', '--control', path))}")
    return run(
        unit,
        "notify",
        f"vfio-user bridge {of_domain}",
        serving,
        (program, "serve", *devices, "--socket-dir", folder, *options),
    )


def run(
    unit: str, kind: str, description: str, properties: Iterable[str], command: Iterable[str]
) -> int:
    """Start a unit, and return when it is ready; or say why it isn't."""
    done = subprocess.run(
        (
            *("systemd-run", "--quiet", "--collect", f"--unit={unit}", f"--service-type={kind}"),
            f"--description={description}",
            *(f"--property={line}" for line in (*PROPERTIES, *properties)),
            *command,
        ),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.stderr.write(complaint(unit) or done.stderr)
    return done.returncode


def address(hostdev: ElementTree.Element) -> str:
    """On the host, as sysfs writes it."""
    source = hostdev.find("source/address")
    if source is None:
        raise SystemExit("a <hostdev> in the <metadata> has no <source> with an <address>")
    domain, bus, slot, function = (
        int(source.get(name, "0"), 0) for name in ("domain", "bus", "slot", "function")
    )
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"


def complaint(unit: str) -> str:
    """What the bridge said last that was wrong, for whoever wanted the domain to start."""
    subprocess.run(("journalctl", "--sync"), check=False)
    said = subprocess.run(
        ("journalctl", f"--unit={unit}", f"--identifier={PROGRAM}", "--output=cat", "--lines=20"),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in said.stdout.splitlines() if line.startswith(f"{PROGRAM}: ")]
    return "".join(f"{line}\n" for line in lines[-1:])


def stop(unit: str) -> int:
    """Also where it never started: libvirt says "release" in any case."""
    for each in (unit, binding(unit)):  # what systemd keeps for the bridge is in the way until then
        subprocess.run(
            ("systemctl", "--quiet", "stop", each), stderr=subprocess.DEVNULL, check=False
        )
    return 0


def binding(unit: str) -> str:
    """The unit that has the devices of another."""
    return f"{unit.removesuffix('.service')}-bind.service"


def unit_name(domain: str) -> str:
    """What isn't for unit names is written as systemd-escape(1) does it."""
    plain = string.ascii_letters + string.digits + ":_.-"
    parts = (c if c in plain else "".join(f"\\x{b:02x}" for b in c.encode()) for c in domain)
    return f"{PROGRAM}-libvirt-{''.join(parts)}.service"


def main(name: str, operation: str, *_: str) -> int:
    if operation not in ("start", "release"):
        return 0
    domain = ElementTree.fromstring(sys.stdin.buffer.read())  # nosec B314 # libvirt's own
    moved = domain.find(MOVED)
    if moved is None:
        return 0
    unit = unit_name(name)
    return start(unit, domain, moved) if operation == "start" else stop(unit)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
