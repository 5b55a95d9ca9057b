# SPDX-License-Identifier: BSD-3-Clause
"""What the process gives up once devices and sockets are open, before any client may speak.

Serving takes little: descriptors that are open, memory, threads. All else goes: the user, if
another is named; capabilities; files, by Landlock; system calls, by seccomp.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import resource
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import syscall_filter
from .errors import BridgeError, UsageError
from .kernel import credentials, landlock
from .kernel.landlock import Access

_READ = Access.READ_FILE | Access.READ_DIR
#: for a socket in a folder of its own, for a while
_SCRATCH = (
    Access.MAKE_DIR | Access.MAKE_SOCK | Access.REMOVE_DIR | Access.REMOVE_FILE | Access.READ_DIR
)
#: read when something is out of the ordinary: our own state, for messages, and times of day
_READ_ALWAYS = ("/proc/self", "/etc/localtime", "/usr/share/zoneinfo")


@dataclass(frozen=True, slots=True)
class User:
    """A user of this host, and the groups it is in."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def find_user(text: str) -> User:
    """The user of that name or number.

    :raise UsageError: there is none
    """
    try:
        entry = pwd.getpwuid(int(text)) if text.isdecimal() else pwd.getpwnam(text)
    except (KeyError, OverflowError):
        raise UsageError(f"--user: there is no user {text!r}; getent passwd lists them") from None
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, tuple(groups))


@dataclass(frozen=True, slots=True)
class Confinement:
    """What is in force, and what could be, with its reason."""

    in_force: tuple[str, ...]
    lacking: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join((*self.in_force, *(f"no {what}" for what in self.lacking)))


def confine(
    new: User | None, folders: Iterable[Path], *, whole: bool = False, library: bool = False
) -> Confinement:
    """Give up all that serving doesn't take, for good. Call it while there is one thread.

    :param new: who to be from now on
    :param folders: where socket files are, to be removed at the end
    :param whole: whether it is an error if the host lacks something
    :param library: whether libvfio-user serves, which listens on sockets of its own, and whose
        system calls aren't known
    :raise BridgeError: it can't be done
    """
    assert threading.active_count() == 1  # another would go on with what it has
    in_force = [*_drop_privileges(new), "no core dumps"]
    lacking = []
    credentials.hide_memory()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    seccomp = syscall_filter.binding()
    with contextlib.suppress(OSError):
        ctypes.CDLL("libgcc_s.so.1")  # glibc loads it late, to end a thread (pthread_exit)
    try:
        version = landlock.restrict(_files(folders, library=library))
        in_force.append(f"Landlock (ABI {version})")
    except OSError as error:
        lacking.append(f"Landlock ({error.strerror}: has the kernel got it, and in its lsm=?)")
    if library:
        lacking.append("seccomp (it isn't known what libvfio-user calls)")
    elif seccomp is None:
        lacking.append("seccomp (install python3-seccomp, or by pip pyseccomp)")
    else:
        try:
            in_force.append(f"seccomp ({syscall_filter.load(seccomp)} system calls)")
        except OSError as error:
            lacking.append(f"seccomp ({error.strerror})")
    if lacking and whole:
        raise BridgeError(f"--confine all can't be had: no {lacking[0]}; auto does without")
    return Confinement(tuple(in_force), tuple(lacking))


def _drop_privileges(new: User | None) -> Iterator[str]:
    kept = _for_locked_memory()
    if new:
        try:
            credentials.become(new.uid, new.gid, new.groups)
        except PermissionError:
            raise BridgeError(
                f"can't serve as user {new.name}: only root can be another; leave --user out"
            ) from None
    credentials.drop_capabilities(kept)
    credentials.gain_nothing()
    yield f"user {new.name if new else _name(os.geteuid())}"
    yield "of capabilities cap_ipc_lock alone" if kept else "no capabilities"
    yield "no new privileges"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)  # a container's


def _for_locked_memory() -> tuple[int, ...]:
    """The capabilities that later DMA maps need: none if there can be a limit instead.

    Who has CAP_IPC_LOCK may lock any memory (vfio_lock_acct), and that stays so.
    """
    if not credentials.has(credentials.CAP_IPC_LOCK):
        return ()
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)
    except (PermissionError, ValueError):  # in a container that was given this one capability
        return (credentials.CAP_IPC_LOCK,)
    return ()


def _files(folders: Iterable[Path], *, library: bool) -> Iterator[tuple[Path, Access]]:
    """What is opened, or removed, while serving and at its end."""
    modules = (entry for entry in sys.path if entry)  # a module may be imported late
    for name in (*_READ_ALWAYS, *modules):
        yield Path(name), _READ
    for folder in folders:
        yield folder, Access.REMOVE_FILE
    if library:
        yield Path(tempfile.gettempdir()), _SCRATCH
