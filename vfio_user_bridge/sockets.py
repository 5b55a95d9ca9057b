# SPDX-License-Identifier: BSD-3-Clause
"""Which device goes on which socket: one that is made for it, or one that was passed in."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from .errors import UsageError
from .handover.names import plain
from .handover.nobody import Nobody
from .listener import Listener, inherited, listen


class Sockets:
    """Opens the socket for a device, or has it already.

    :param passed: the sockets that systemd passed; they count if no option names another
    :param undo: closes what was passed
    :param before: who may have left listening sockets
    :raise UsageError: no socket was named, or those passed in don't fit *names*
    """

    def __init__(
        self,
        options: Namespace,
        names: Sequence[str],
        passed: Sequence[int],
        undo: ExitStack,
        before: Nobody,
    ) -> None:
        self._before = before
        self._path: Path | None = options.socket_path
        self._folder: Path | None = options.socket_dir
        self._mode: int = options.socket_mode
        if before.runs:
            passed = []  # what it has, we get
        elif options.fd is not None:
            passed = [options.fd]
        elif self._path or self._folder:
            passed = []
        elif not passed:
            raise UsageError("no socket: give --socket-path PATH, --socket-dir DIR or --fd N")
        listeners = []
        for fd in passed:
            listeners.append(inherited(fd))
            undo.callback(listeners[-1].close)
        self._given = match_sockets(listeners, names) if listeners else {}

    def open(self, name: str) -> Listener:
        if left := self._before.listener(plain(name)):
            return left
        if name in self._given:
            return self._given[name]
        path = self._folder / socket_name(name) if self._folder else self._path
        assert path is not None
        return listen(path, self._mode)


def socket_name(name: str) -> str:
    """What the socket of the device *name* is called in its folder."""
    return f"{name}.sock"


def match_sockets(sockets: Sequence[Listener], names: Sequence[str]) -> dict[str, Listener]:
    """Which of the *sockets* passed in is for which device.

    By their files, if one is called NAME.sock after a device; else they are in the devices' order.

    :raise UsageError: they don't fit
    """
    if len(sockets) != len(names):
        raise UsageError(
            f"{len(sockets)} sockets were passed in for {len(names)} devices: pass one for each"
        )
    by_file = {Path(listener.address).name: listener for listener in sockets}
    named = {name: by_file.get(socket_name(name)) for name in names}
    if not any(named.values()):
        return dict(zip(names, sockets, strict=True))
    if missing := [name for name, listener in named.items() if listener is None]:
        raise UsageError(
            f"no socket was passed in that is called {socket_name(missing[0])}, and others are"
            " called after their devices: call all of them so, or none"
        )
    return {name: listener for name, listener in named.items() if listener}
