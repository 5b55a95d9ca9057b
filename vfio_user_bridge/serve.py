# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge serve`: every device on its socket, all of it or nothing.

Follows the specification's "Backend Program Conventions": stays in the foreground, takes
--socket-path or --fd. systemd's LISTEN_FDS, which no option names, is the third way in.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from .activation import Passed, passed
from .confinement import Confinement, User, confine, find_user
from .errors import BridgeError, UsageError
from .handover.names import LINK_VARIABLE
from .handover.nobody import Nobody
from .kernel.processes import raise_descriptor_limit
from .layers import Layers
from .limits import Limits, parse
from .listener import Listener, listen, listen_at
from .log import set_up as set_up_log
from .notify import Manager
from .opening import Devices, device_name
from .peers import allowed
from .server import Server
from .session import Session
from .sockets import Sockets

if TYPE_CHECKING:
    from .handover.inherited import Left
    from .management.service import Service

log = logging.getLogger(__name__)

_STDERR = 2


def serve(options: Namespace) -> None:
    """Serve until SIGTERM or SIGINT.

    :raise BridgeError: a device or socket can't be had; what was opened is closed again
    """
    _occupy_standard_streams()
    set_up_log(options.log_level)
    raise_descriptor_limit()  # a client may have many files
    limits = parse(options.limit)
    names = [device_name(text) for text in options.devices]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name} is given twice: a device has one socket")
    if len(names) > 1 and (options.socket_path or options.fd is not None):
        raise UsageError("several devices need a socket each: use --socket-dir DIR")

    if options.user and options.confine == "off":
        raise UsageError("--user is part of what --confine off leaves out: drop one of them")
    layers = Layers(options, names)

    # Until run() has handlers of its own, SIGTERM undoes what was done, as SIGINT does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _serve(options, names, limits, layers)
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


def _occupy_standard_streams() -> None:
    """One that is closed must not come to be another file, which is then written to."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(fd)


def _serve(options: Namespace, names: Sequence[str], limits: Limits, layers: Layers) -> None:
    given = passed()  # before there are other descriptors
    user = find_user(options.user) if options.user else None
    engine = _engine(options.engine)
    with ExitStack() as undo:
        before = _predecessor(given, undo)
        with before.or_it_goes_on():
            manager = Manager(before.environment())
            store = before.store(manager)
            server = Server(
                reset_on_disconnect=options.on_disconnect == "reset",
                allowed=allowed(options.allow_uid, options.allow_gid),
                limits=limits,
                patience=options.poll,
                session=engine,
                manager=manager,
                store=store,
            )
            undo.callback(server.close)
            sockets = Sockets(options, names, given.sockets, undo, before)
            # Numbers of a predecessor that runs are others' here: what it has, we get.
            groups = [] if before.runs else [*options.group_fd, *given.files]
            devices = Devices(limits, groups, undo, bar_mmap=options.bar_mmap == "auto")
            texts = dict(zip(names, options.devices, strict=True))

            def offer(name: str, left: Left | None) -> None:
                if name not in texts:
                    raise BridgeError("it isn't served here any more")
                device = devices.open(texts[name], name, left)
                try:
                    device, recorded = layers.around(
                        device, again=before.found, left=left is not None
                    )
                    listener = sockets.open(name)
                except BaseException:
                    device.close()
                    raise
                server.add(device, listener, recorded, left)

            # Those that go on come first: another may be in the same IOMMU group.
            resumed = before.resume(offer)
            for name in names:
                if name not in resumed:
                    offer(name, None)
            devices.check_groups()
            listeners = {port.device.name: port.listener for port in server.ports()}
            for_operators = []
            for name, each in _for_operators(options, server, lambda: confinement, before.listener):
                undo.callback(each.close)
                for_operators.append(each)
                server.operators[name] = each.listener
            ours = [*listeners.values(), *server.operators.values()]
            confinement = _confine(options, user, [each.path for each in ours if each.path])
            before.is_over()
            if before.runs:
                server.succeed()
        for each in for_operators:
            each.start()
        ready = [f"{name} ready on {listeners[name].address}\n" for name in names]

        def announce() -> None:
            if sys.stdout and not before.runs:
                with contextlib.suppress(OSError):  # who reads it may be gone, and guests aren't
                    os.write(sys.stdout.fileno(), "".join(ready).encode())
            log.info("confined: %s", confinement)
            for each in for_operators:
                log.info("for operators: %s on %s", each.what, each.listener.address)

        gc.freeze()  # all this stays: no collection need look at it again
        server.run(announce)


def _predecessor(given: Passed, undo: ExitStack) -> Nobody:
    """:raise BridgeError: it runs, and doesn't hand over"""
    if not given.kept and LINK_VARIABLE not in os.environ:
        return Nobody()
    from .handover.predecessor import predecessor

    return predecessor(given.kept, undo)


def _for_operators(
    options: Namespace,
    server: Server,
    confinement: Callable[[], Confinement],
    left: Callable[[str], Listener | None],
) -> Iterator[tuple[str, Service]]:
    """What they look at the server by, and what it is called.

    :param left: gives the listening socket that a predecessor left for one, if there is any
    :raise BridgeError: a package isn't installed, or a socket can't be made
    """
    if options.control:
        from .management.control import Control
        from .management.methods import methods

        listener = left("control") or listen(options.control, 0o600)
        yield "control", Control(listener, *methods(server, confinement))
    if options.metrics:
        from .management.metrics import offer

        listener = left("metrics") or listen_at(options.metrics, 0o600)
        yield "metrics", offer(listener, server.status, options.engine)


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
    from .libvfio_user import library
    from .libvfio_user.session import LibrarySession

    library.load()  # now, not when the first client comes
    return LibrarySession
