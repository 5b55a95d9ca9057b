# SPDX-License-Identifier: BSD-3-Clause
"""Starting the successor of a bridge that runs: the operator's side of an upgrade."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path
from typing import Any

from vfio_user_bridge import __version__
from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.kernel.processes import process_namespace
from vfio_user_bridge.management.control import EndedError, NoAnswerError, ask

from .names import LINK_VARIABLE
from .orphan import Orphan

_PACKAGES = Path(__file__).parents[2]


def upgrade(control: Path) -> str:
    """Have this version take over from the bridge whose control socket is at *control*.

    Gives what there is to say.

    :raise BridgeError: it doesn't, and the other goes on
    """
    before = ask(control, "command-line")
    if before["processes"] != process_namespace():  # whose manager couldn't name its successor
        raise BridgeError("the bridge is in another container: upgrade it in there")
    _check_manager(before["pid"])
    if before["user"] != os.geteuid():  # root's successor would be root
        raise BridgeError(f"the bridge was started by user {before['user']}: upgrade as that user")
    ours, theirs = socket.socketpair()
    with theirs:
        successor = _start(before, theirs)
    with contextlib.closing(successor):
        try:
            ask(control, "hand-over", files=[ours.detach()], hand=True)
        except EndedError:  # which is the good answer
            if not _serves(control, successor.pid):
                raise BridgeError(
                    f"the bridge ended without saying whether pid {successor.pid} takes over: see"
                    " status and its log"
                ) from None
        except NoAnswerError:
            raise  # it may yet be done
        except BridgeError:
            successor.kill()  # at once: it may be late, and take maps that are taken back
            raise
        return (
            f"vfio-user-bridge {before['version']}, pid {before['pid']}, has handed over to"
            f" {__version__}, pid {successor.pid}"
        )


def _serves(control: Path, process: int) -> bool:
    """Whether that is who answers by now."""
    with contextlib.suppress(BridgeError):
        return bool(ask(control, "status")["pid"] == process)
    return False


def _start(before: dict[str, Any], link: socket.socket) -> Orphan:
    """It has our standard error until it serves, so that we see why if it doesn't."""
    folder = before["directory"]
    # Nothing of the folder that it starts in: that may be anybody's, and have another version.
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    path = os.pathsep.join(map(str, (_PACKAGES, *(Path(each).absolute() for each in paths))))
    try:
        return Orphan(
            (sys.executable, "-P", "-m", "vfio_user_bridge", "serve", *before["arguments"]),
            directory=folder if Path(folder).is_dir() else "/",  # it may have been removed
            environment={**os.environ, LINK_VARIABLE: str(link.fileno()), "PYTHONPATH": path},
            fd=link.fileno(),
        )
    except OSError as error:
        raise BridgeError(
            f"can't start {sys.executable}: {error.strerror}; the old bridge goes on"
        ) from None


def _check_manager(process: int) -> None:
    """A service manager takes a successor only in the service's own control group.

    :raise BridgeError: the bridge is a service, and we aren't its ExecReload=
    """
    try:
        theirs, ours = (Path(f"/proc/{which}/cgroup").read_text() for which in (process, "self"))
    except OSError:
        return  # in a container, whose manager looks at who descends from it
    unit = Path(theirs.strip().rpartition(":")[2]).name
    if unit.endswith(".service") and theirs != ours:
        raise BridgeError(
            f"the bridge is systemd's service {unit}: systemctl reload {unit} upgrades it"
        )
