# SPDX-License-Identifier: BSD-3-Clause
"""How this host is booted with another option of the kernel's."""

from __future__ import annotations

import re

from .host import Host

GRUB = "etc/default/grub"
CMDLINE = "etc/kernel/cmdline"  # systemd-boot, unified kernel images, Proxmox

#: who makes GRUB's menu anew: Debian, Fedora without grubby, Arch
_MAKERS = {
    "usr/sbin/update-grub": "update-grub",
    "usr/sbin/grub2-mkconfig": "grub2-mkconfig -o /boot/grub2/grub.cfg",
    "usr/bin/grub-mkconfig": "grub-mkconfig -o /boot/grub/grub.cfg",
}


def place(host: Host) -> str:
    """Where options stand."""
    for name in (GRUB, CMDLINE):
        if host.has(name):
            return f"in /{name}"
    return "in the boot loader's configuration"


def adding(host: Host, option: str) -> tuple[str, str]:
    """Advice, and the command if there is one that does it."""
    advice = f"boot with {option} on the kernel's command line, {place(host)}"
    return advice, _command(host, option)


def _command(host: Host, option: str) -> str:
    if host.has("usr/sbin/grubby"):
        return f"grubby --update-kernel=ALL --args={option} && reboot"
    if re.search(r'^GRUB_CMDLINE_LINUX="', host.text(GRUB), re.MULTILINE):
        edit = f"""sed -i 's/^GRUB_CMDLINE_LINUX="/&{option} /' /{GRUB}"""
        for program, command in _MAKERS.items():
            if host.has(program):
                return f"{edit} && {command} && reboot"
    if host.has(CMDLINE) and host.has("usr/sbin/proxmox-boot-tool"):
        return f"sed -i '1s/$/ {option}/' /{CMDLINE} && proxmox-boot-tool refresh && reboot"
    return ""
