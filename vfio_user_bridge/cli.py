# SPDX-License-Identifier: BSD-3-Clause
"""The command line. Each command imports what it needs when it runs: start-up time is a feature."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from . import __version__, limits, serve_options
from .errors import BridgeError, DeviceError, UsageError

if TYPE_CHECKING:
    from .kernel.pci import PciDevice

PROGRAM = "vfio-user-bridge"

DESCRIPTION = """\
Give a virtual machine a physical PCI device over one safe UNIX socket.

One process owns the device through kernel VFIO; an unmodified QEMU (10.1 or
later) connects to its socket in the vfio-user protocol, and the guest drives
the hardware. QEMU needs no access to /dev/vfio.
"""

EXAMPLES = """\
examples:
  vfio-user-bridge list                             what can be given to a guest
  vfio-user-bridge bind 0000:01:10.1                take it from its driver
  vfio-user-bridge serve 0000:01:10.1 --socket-path /run/nic.sock
  vfio-user-bridge qemu-args /run/nic.sock          how QEMU connects to it
  vfio-user-bridge unbind 0000:01:10.1              give it back to its driver

  vfio-user-bridge serve model:edu --socket-path /tmp/edu.sock
                                                    without any hardware
"""

SERVE_EXAMPLES = """\
examples:
  vfio-user-bridge serve 0000:01:10.1 --socket-path /run/nic.sock
  vfio-user-bridge serve 01:10.1 01:10.2 --socket-dir /run/bridge
      makes /run/bridge/0000:01:10.1.sock and /run/bridge/0000:01:10.2.sock

Started by systemd it takes the sockets and IOMMU groups passed in. Sockets are
matched by the names of their files (0000:01:10.1.sock), else by order.

Prints a line for each device when its socket accepts connections. SIGTERM and
SIGINT end it: the device is reset, socket files are removed.
"""

#: What a manager may run the program with that knows it by its JSON file alone (the
#: specification's "Backend Program Conventions", and those of vhost-user).
CONVENTIONS = ("--socket-path", "--fd", "--print-capabilities")

LIST_COLUMNS = """\
The column SERVE says what is missing, if anything, before serve takes a device:
  yes           nothing
  bind          a host driver has it, or none: bind it to vfio-pci
  bind --group  so have others in its IOMMU group: bind all of them
  group         its IOMMU group holds a bridge that the host needs
  no IOMMU      the IOMMU is off or missing
  bridge        bridges stay with the host
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Gives the exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted by the keyboard.
    """
    try:
        options = _parser().parse_args(_with_command(sys.argv[1:] if argv is None else argv))
        options.run(options)
        sys.stdout.flush()
    except BridgeError as error:
        _complain(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read has seen enough. The flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as leaving:  # argparse, after --help and --version
        return int(leaving.code or 0)
    return 0


def _with_command(words: Sequence[str]) -> list[str]:
    """`serve` goes without saying where an option of the conventions comes first."""
    implied = words and words[0].partition("=")[0] in CONVENTIONS
    return ["serve", *words] if implied else list(words)


def _complain(line: str) -> None:
    sys.stderr.write(f"{PROGRAM}: {line}\n")


class _Parser(argparse.ArgumentParser):
    """Complains in one line, as everything here does."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")

    def option_names(self) -> list[str]:
        """Without the dashes, in order."""
        names = (name for action in self._actions for name in action.option_strings)
        return [name.removeprefix("--") for name in names if name.startswith("--")]


class _PrintCapabilities(argparse.Action):
    """As vhost-user backends do: the features are the options beyond those that all have."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import json

        assert isinstance(parser, _Parser)
        common = {"help", *(name.removeprefix("--") for name in CONVENTIONS)}
        features = [name for name in parser.option_names() if name not in common]
        # The type is VFIO_DEVICE_API_PCI_STRING of linux/vfio.h.
        print(json.dumps({"type": "vfio-pci", "features": features}, indent=2))
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        PROGRAM,
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=raw,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, what: str, epilog: str | None = None) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=what,
            description=f"{what[0].upper()}{what[1:]}.",
            epilog=epilog,
            formatter_class=raw,
            allow_abbrev=False,
        )

    serve_epilog = f"{SERVE_EXAMPLES}\nlimits, for each client:\n{limits.described()}"
    _add_serve(command("serve", "offer devices on sockets, until told to stop", serve_epilog))

    lister = command("list", "show PCI devices, and which can be served", LIST_COLUMNS)
    lister.add_argument("devices", metavar="BDF", nargs="*", help="only these PCI addresses")
    lister.add_argument("--group", type=int, metavar="N", help="only those of IOMMU group N")
    lister.add_argument("--json", action="store_true", help="all that is known, for programs")
    lister.set_defaults(run=_list)

    binder = command("bind", "give devices to vfio-pci, remembering their drivers")
    _add_devices(binder)
    binder.add_argument("--force", action="store_true", help="even with a mounted file system")
    binder.set_defaults(run=_bind)

    unbinder = command("unbind", "give devices back to the drivers that had them")
    _add_devices(unbinder)
    unbinder.set_defaults(run=_unbind)

    status = command("status", "show what a running bridge does")
    status.add_argument(
        "--control",
        metavar="PATH",
        type=Path,
        required=True,
        help="the control socket that serve was told to make",
    )
    status.add_argument("--json", action="store_true", help="all that is known, for programs")
    status.set_defaults(run=_status)

    args = command("qemu-args", "print the QEMU arguments that connect to sockets")
    args.add_argument("sockets", metavar="SOCKET", nargs="+", type=Path)
    args.add_argument("--memory", metavar="SIZE", default="4G", help="guest RAM (default: 4G)")
    args.set_defaults(run=_qemu_args)

    xml = command("libvirt-xml", "print a libvirt domain whose PCI devices are on sockets")
    what = xml.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--domain",
        metavar="FILE",
        type=Path,
        help="the domain, as virsh dumpxml --inactive prints it, with its <hostdev> elements",
    )
    what.add_argument(
        "--device", metavar="SOCKET", type=Path, help="print just what a device on SOCKET needs"
    )
    xml.add_argument(
        "--socket-dir",
        metavar="DIR",
        type=Path,
        default=Path("/run/vfio-user-bridge"),
        help="where the devices have their sockets (default: %(default)s)",
    )
    xml.set_defaults(run=_libvirt_xml)
    return parser


def _add_devices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("devices", metavar="BDF", nargs="+", help="PCI address: 0000:01:10.1")
    parser.add_argument(
        "--group", action="store_true", help="with all others of its IOMMU group, but for bridges"
    )


def _add_serve(parser: argparse.ArgumentParser) -> None:
    serve_options.add_to(parser)
    parser.add_argument(
        "--print-capabilities",
        action=_PrintCapabilities,
        nargs=0,
        help="say in JSON what this backend can do, and exit",
    )
    parser.set_defaults(run=_serve)


# ---- Commands -------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> None:
    from .serve import serve

    serve(options)


def _list(options: argparse.Namespace) -> None:
    import shutil

    from .inventory import as_json, as_table, entry
    from .kernel import pci
    from .kernel.inuse import uses
    from .pci_ids import PciIds

    if options.devices:
        devices = [pci.find(pci.parse_bdf(text)) for text in options.devices]
    else:
        devices = pci.all_devices()
    if options.group is not None:
        devices = [device for device in devices if device.iommu_group == options.group]
        if not devices:
            raise DeviceError(f"there is no such device in IOMMU group {options.group}")
    names, used = PciIds.load(), uses()
    entries = [entry(device, names, used.get(device.bdf, ())) for device in devices]
    if options.json:
        print(as_json(entries))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(as_table(entries, width))


def _bind(options: argparse.Namespace) -> None:
    from .kernel import drivers, pci
    from .kernel.inuse import uses

    devices, used = _chosen(options), uses()
    vital = [f"{d.bdf}: {use.text}" for d in devices for use in used.get(d.bdf, ()) if use.vital]
    if vital and not options.force:
        raise DeviceError(
            f"{vital[0]}: unmount it first, or bind --force and lose what isn't saved"
        )
    for device in devices:
        before = drivers.bind(device)
        _print_change(device, before, device.driver)
    for line in {why.line: None for device in devices if (why := pci.obstacle(device))}:
        _complain(f"not ready to be served: {line}")


def _unbind(options: argparse.Namespace) -> None:
    from .kernel import drivers

    for device in _chosen(options):
        before = device.driver
        _print_change(device, before, drivers.unbind(device))


def _print_change(device: PciDevice, before: str | None, after: str | None) -> None:
    change = f"{before or 'no driver'} -> {after or 'no driver'}"
    if before == after:
        change = f"{after or 'no driver'}, as before"
    print(f"{device.bdf}: {change}", flush=True)


def _chosen(options: argparse.Namespace) -> list[PciDevice]:
    """The devices named; with ``--group`` also the other endpoints of their groups."""
    from .kernel import pci

    named = [pci.find(pci.parse_bdf(text)) for text in options.devices]
    chosen = {device.bdf: device for device in named}
    for device in named if options.group else ():
        if device.iommu_group is not None:
            chosen |= {member.bdf: member for member in pci.group_endpoints(device.iommu_group)}
    return list(chosen.values())


def _status(options: argparse.Namespace) -> None:
    import json

    from .control import ask
    from .status import as_text

    answer = ask(options.control, "status")
    print(json.dumps(answer, indent=2) if options.json else as_text(answer))


def _qemu_args(options: argparse.Namespace) -> None:
    import shlex

    from .qemu import arguments

    print(shlex.join(arguments(options.sockets, options.memory)))


def _libvirt_xml(options: argparse.Namespace) -> None:
    from .libvirt import bridged, pieces

    if options.device:
        print(pieces(options.device), end="")
        return
    try:
        text = options.domain.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise BridgeError(f"can't read {options.domain}: {reason}") from None
    done = bridged(text, options.socket_dir.absolute())
    print(done.text, end="")
    for line in done.lost:
        _complain(line)
