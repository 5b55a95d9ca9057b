# SPDX-License-Identifier: BSD-3-Clause
"""What serving can do without: packages of Python's, and Landlock."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

from vfio_user_bridge import syscall_filter
from vfio_user_bridge.kernel import landlock

from .findings import Finding, ok, warning
from .host import Host


def module(name: str, use: str) -> Callable[[Host], Iterator[Finding]]:
    """The check for a module; *use* is what is done with it."""

    def check(_host: Host) -> Iterator[Finding]:
        if importlib.util.find_spec(name):
            yield ok(f"{name} is installed, for {use}")
        else:
            yield warning(
                f"{name} isn't installed, which is for {use}",
                f"install python3-{name.replace('_', '-')}, or by pip {name}",
            )

    return check


def seccomp(_host: Host) -> Iterator[Finding]:
    """System calls can be filtered."""
    if syscall_filter.binding():
        yield ok("seccomp: system calls are filtered while serving")
    else:
        yield warning(
            "there is no binding of seccomp, so system calls aren't filtered while serving",
            "install python3-seccomp, or by pip pyseccomp",
        )


def files(_host: Host) -> Iterator[Finding]:
    """Files can be locked away."""
    try:
        version = landlock.abi()
    except OSError as error:
        yield warning(
            f"no Landlock ({error.strerror}), so files aren't locked away while serving",
            "boot a kernel with CONFIG_SECURITY_LANDLOCK, and landlock in its lsm= if there is one",
        )
    else:
        yield ok(f"Landlock (ABI {version}): files are locked away while serving")
