# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge serve`: every device on its socket, all of it or nothing.

Follows the specification's "Backend Program Conventions": stays in the foreground, takes
--socket-path or --fd. systemd's LISTEN_FDS, which no option names, is the third way in.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from .activation import passed
from .confinement import Confinement, User, confine, find_user
from .device import Device
from .errors import UsageError
from .limits import Limits, parse
from .listener import listen, listen_at
from .log import set_up as set_up_log
from .notify import Manager
from .opening import Devices, device_name
from .peers import allowed
from .server import Server
from .session import Session
from .sockets import Sockets

if TYPE_CHECKING:
    from .control import Control
    from .httpd import Httpd
    from .policy import Rule
    from .recording import RecordedDevice

log = logging.getLogger(__name__)


def serve(options: Namespace) -> None:
    """Serve until SIGTERM or SIGINT.

    :raise BridgeError: a device or socket can't be had; what was opened is closed again
    """
    set_up_log(options.log_level)
    limits = parse(options.limit)
    names = [device_name(text) for text in options.devices]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name} is given twice: a device has one socket")
    if len(names) > 1 and (options.socket_path or options.fd is not None):
        raise UsageError("several devices need a socket each: use --socket-dir DIR")

    if options.user and options.confine == "off":
        raise UsageError("--user is part of what --confine off leaves out: drop one of them")
    rules = _rules(options.policy, names) if options.policy else []

    # Until run() has handlers of its own, SIGTERM undoes what was done, as SIGINT does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _serve(options, names, limits, rules)
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


def _serve(options: Namespace, names: Sequence[str], limits: Limits, rules: Sequence[Rule]) -> None:
    given = passed()  # before there are other descriptors
    user = find_user(options.user) if options.user else None
    with ExitStack() as undo:
        server = Server(
            reset_on_disconnect=options.on_disconnect == "reset",
            allowed=allowed(options.allow_uid, options.allow_gid),
            limits=limits,
            patience=options.poll,
            session=_engine(options.engine),
            manager=Manager(os.environ),
        )
        undo.callback(server.close)
        sockets = Sockets(options, names, given.sockets, undo)
        files = []  # the sockets that are ours
        groups = [*options.group_fd, *given.files]
        devices = Devices(limits, groups, undo, bar_mmap=options.bar_mmap == "auto")
        ready = []
        for text, name in zip(options.devices, names, strict=True):
            device: Device = devices.open(text, name)
            recorded = None
            try:
                if rules:
                    device = _policed(device, rules)
                if options.record or options.control:
                    device = recorded = _recorded(device, options)
                listener = sockets.open(name)
            except BaseException:
                device.close()
                raise
            server.add(device, listener, recorded)
            if listener.path:
                files.append(listener.path)
            ready.append(f"{name} ready on {listener.address}\n")
        devices.check_groups()
        control = None
        if options.control:
            from .methods import methods  # confined, it might not be found

            control = _control(options.control)
            undo.callback(control.close)
            files.append(options.control)
        metrics = None
        if options.metrics:
            metrics = _metrics(options, server)
            undo.callback(metrics.close)
            if metrics.listener.path:
                files.append(metrics.listener.path)
        confinement = _confine(options, user, files)
        if metrics:
            metrics.start()
        if control:
            control.start(*methods(server, confinement))

        def announce() -> None:
            log.info("confined: %s", confinement)
            if metrics:
                log.info("metrics on %s", metrics.listener.address)
            sys.stdout.write("".join(ready))
            sys.stdout.flush()

        gc.freeze()  # all this stays: no collection need look at it again
        server.run(announce)


def _rules(path: Path, names: Sequence[str]) -> Sequence[Rule]:
    """:raise UsageError: they are wrong, or one is for no device of these names"""
    from .policy import check_served, read

    rules = read(path)
    check_served(rules, names)
    return rules


def _policed(device: Device, rules: Sequence[Rule]) -> Device:
    """:raise UsageError: it hasn't what a rule is about"""
    from .policed import policed

    return policed(device, rules)


def _recorded(device: Device, options: Namespace) -> RecordedDevice:
    """*device*, which can be recorded now, and is if there is to be a file for it.

    :raise BridgeError: the file can't be had
    """
    from .recording import RecordedDevice, new_file

    recorded = RecordedDevice(device)
    if options.record:
        several = len(options.devices) > 1
        path = options.record / f"{device.name}.trace" if several else options.record
        recorded.start(new_file(path), options.record_limit)
    return recorded


def _control(path: Path) -> Control:
    """:raise BridgeError: msgpack isn't installed, or the socket can't be made"""
    from .control import Control

    return Control(listen(path, 0o600))


def _metrics(options: Namespace, server: Server) -> Httpd:
    """:raise BridgeError: prometheus_client isn't installed, or the socket can't be made"""
    from .metrics import offer

    return offer(listen_at(options.metrics, 0o600), server.status, options.engine)


def _confine(options: Namespace, user: User | None, sockets: Sequence[Path]) -> Confinement:
    """:raise BridgeError: not as far as it must be"""
    if options.confine == "off":
        return Confinement((), ("confinement: --confine off",))
    if user:
        for path in sockets:
            os.chown(path, user.uid, user.gid)
    folders = {path.parent for path in sockets}
    whole, library = options.confine == "all", options.engine == "libvfio-user"
    return confine(user, folders, whole=whole, library=library)


def _engine(name: str) -> type[Session]:
    """:raise BridgeError: it isn't installed"""
    if name == "native":
        return Session
    from . import libvfio_user
    from .library_session import LibrarySession

    libvfio_user.load()  # now, not when the first client comes
    return LibrarySession
