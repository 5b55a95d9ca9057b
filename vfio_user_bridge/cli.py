# SPDX-License-Identifier: BSD-3-Clause
"""The command line: reads it, runs one of `COMMANDS`, and says what went wrong in one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import __version__, activation
from .commands import (
    PROGRAM,
    HelpFormatter,
    add_commands,
    bind,
    complain,
    control,
    doctor,
    libvirt_xml,
    qemu_args,
    serve,
    status,
    supervise,
    trace,
    unbind,
    upgrade,
)
from .commands import list as list_
from .errors import BridgeError, UsageError

DESCRIPTION = """\
Give a virtual machine a physical PCI device over one safe UNIX socket.

One process owns the device through kernel VFIO; an unmodified QEMU (10.1 or
later) connects to its socket with -device vfio-user-pci, and the guest drives
the hardware. QEMU needs no access to /dev/vfio, no locked-memory limit and no
capability.

A BDF is a device's PCI address, domain:bus:device.function in hexadecimal, such
as 0000:01:10.1; the domain may be left out where it is 0000.
"""

EXAMPLES = """\
examples:
  vfio-user-bridge doctor                   what this host still needs
  vfio-user-bridge list                     what can be given to a guest
  vfio-user-bridge bind 0000:01:10.1        take it from its driver
  vfio-user-bridge serve 0000:01:10.1 --socket-path /run/nic.sock
  vfio-user-bridge qemu-args /run/nic.sock  how QEMU connects to it
  vfio-user-bridge unbind 0000:01:10.1      give it back to its driver

Without any hardware:
  vfio-user-bridge serve model:edu --socket-path /tmp/edu.sock
"""

#: in the order of --help
COMMANDS = (
    *(serve, supervise, doctor, list_, bind, unbind),
    *(status, control, upgrade, trace, qemu_args, libvirt_xml),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Gives the exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted by the keyboard.
    """
    # A service manager may take wrong usage for final, and drop what it keeps for a guest.
    worst = 1 if activation.any_kept() else 2
    try:
        options = build_parser().parse_args(_with_command(sys.argv[1:] if argv is None else argv))
        status = options.run(options)
        if sys.stdout:  # it may be closed
            sys.stdout.flush()
    except BridgeError as error:
        complain(str(error))
        return min(error.exit_status, worst)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read has seen enough. The flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as leaving:  # argparse, after --help and --version
        return int(leaving.code or 0)
    return int(status or 0)


def _with_command(words: Sequence[str]) -> list[str]:
    """`serve` goes without saying where an option of the conventions comes first."""
    implied = words and words[0].partition("=")[0] in serve.CONVENTIONS
    return ["serve", *words] if implied else list(words)


class Parser(argparse.ArgumentParser):
    """Complains in one line, as everything here does."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def build_parser() -> Parser:
    """All that the program can be told. What is written about it is made from this too."""
    parser = Parser(
        PROGRAM,
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"{PROGRAM} {__version__}",
        help="print the version and exit",
    )
    add_commands(parser, COMMANDS)
    return parser
