# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge serve`: which device goes on which socket, and all of it or nothing.

Follows the specification's "Backend Program Conventions": stays in the foreground, takes
--socket-path or --fd. systemd's LISTEN_FDS, which no option names, is the third way in.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from .device import Device
from .errors import UsageError
from .limits import Limits, parse
from .listener import Listener, activated, inherited, listen
from .server import Server
from .session import Session

if TYPE_CHECKING:
    from .iommu import Iommu

MODEL = "model:"


def serve(options: Namespace) -> None:
    """Serve until SIGTERM or SIGINT.

    :raise BridgeError: a device or socket can't be had; what was opened is closed again
    """
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s"
    )
    limits = parse(options.limit)
    names = [device_name(text) for text in options.devices]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name} is given twice: a device has one socket")
    if len(names) > 1 and (options.socket_path or options.fd is not None):
        raise UsageError("several devices need a socket each: use --socket-dir DIR")

    # Until run() has handlers of its own, SIGTERM undoes what was done, as SIGINT does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _serve(options, names, limits)
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


def _serve(options: Namespace, names: Sequence[str], limits: Limits) -> None:
    with ExitStack() as undo:
        server = Server(
            reset_on_disconnect=options.on_disconnect == "reset",
            limits=limits,
            session=_engine(options.engine),
        )
        undo.callback(server.close)
        sockets = _Sockets(options, names, undo)
        devices = _Devices(limits, bar_mmap=options.bar_mmap == "auto")
        ready = []
        for text, name in zip(options.devices, names, strict=True):
            device = devices.open(text, name)
            try:
                listener = sockets.open(name)
            except BaseException:
                device.close()
                raise
            server.add(device, listener)
            ready.append(f"{name} ready on {_address(listener.socket)}\n")
        sys.stdout.write("".join(ready))
        sys.stdout.flush()
        server.run()


def _engine(name: str) -> type[Session]:
    """:raise BridgeError: it isn't installed"""
    if name == "native":
        return Session
    from . import libvfio_user
    from .library_session import LibrarySession

    libvfio_user.load()  # now, not when the first client comes
    return LibrarySession


def device_name(text: str) -> str:
    """What the device *text* of the command line is called, in logs and as its socket's name.

    :raise UsageError: it is neither a model nor a PCI address
    """
    if text.startswith(MODEL):
        return text.removeprefix(MODEL)
    from .kernel.pci import parse_bdf

    try:
        return parse_bdf(text)
    except UsageError:
        raise UsageError(
            f"{text!r} is not a device: give a PCI address like 0000:01:10.1, or model:edu"
        ) from None


class _Devices:
    """Opens devices; those of the host share an `Iommu`."""

    def __init__(self, limits: Limits, *, bar_mmap: bool) -> None:
        self._limits = limits
        self._bar_mmap = bar_mmap
        self._iommu: Iommu | None = None

    def open(self, text: str, name: str) -> Device:
        if text.startswith(MODEL):
            from .models import create

            return create(name, self._limits)
        from .hostdev import HostDevice
        from .iommu import Iommu

        if self._iommu is None:
            self._iommu = Iommu(self._limits)
        return HostDevice(name, self._iommu, bar_mmap=self._bar_mmap)


class _Sockets:
    """Opens the socket for a device, or has it already: ``--fd``, systemd."""

    def __init__(self, options: Namespace, names: Sequence[str], undo: ExitStack) -> None:
        """:raise UsageError: no socket was named, or those passed in don't fit *names*"""
        self._path: Path | None = options.socket_path
        self._folder: Path | None = options.socket_dir
        self._mode: int = options.socket_mode
        self._given: dict[str, Listener] = {}
        if options.fd is not None:
            self._given = {names[0]: inherited(options.fd)}
        elif not self._path and not self._folder:
            self._given = match_sockets(activated(), names)
        for listener in self._given.values():
            undo.callback(listener.close)

    def open(self, name: str) -> Listener:
        if name in self._given:
            return self._given[name]
        path = self._folder / f"{name}.sock" if self._folder else self._path
        assert path is not None
        return listen(path, self._mode)


def match_sockets(
    sockets: Sequence[tuple[str, Listener]], names: Sequence[str]
) -> dict[str, Listener]:
    """Which of systemd's *sockets*, each with its FileDescriptorName=, is for which device.

    By name if one is a device's, else by order. A FileDescriptorName can't contain colons:
    0000-01-10.1 is the name for 0000:01:10.1.

    :raise UsageError: there are none, or they don't fit
    """
    if not sockets:
        raise UsageError("no socket: give --socket-path PATH, --socket-dir DIR or --fd N")
    if len(sockets) != len(names):
        raise UsageError(f"{len(sockets)} sockets were passed in for {len(names)} devices")
    spelled = {name.replace(":", "-"): name for name in names}
    if not any(given in spelled for given, _ in sockets):
        return {name: listener for name, (_, listener) in zip(names, sockets, strict=True)}
    by_name = dict(sockets)
    if missing := [spelling for spelling in spelled if spelling not in by_name]:
        raise UsageError(f"no socket was passed in with FileDescriptorName={missing[0]}")
    return {name: by_name[spelling] for spelling, name in spelled.items()}


def _address(listener: socket.socket) -> str:
    """As ss(8) writes it: a path, or @name for one in the abstract namespace."""
    address = listener.getsockname()
    if isinstance(address, bytes):
        return "@" + address[1:].decode(errors="replace")
    return str(address)
