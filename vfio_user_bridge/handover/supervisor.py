# SPDX-License-Identifier: BSD-3-Clause
"""A service manager for one bridge, where there is no systemd, as in a container.

It speaks systemd's protocol (sd_notify(3), sd_pid_notify_with_fds(3), sd_listen_fds(3)), so that a
bridge can't tell it from systemd: what one has stored here is passed to the next, which goes on
from there. It can be process 1.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import MutableMapping

from vfio_user_bridge.activation import listen_fds
from vfio_user_bridge.kernel.processes import adopt_orphans, raise_descriptor_limit
from vfio_user_bridge.notify import Manager

from . import child
from .fdstore import FdStore, valid
from .main_process import MainProcess, named
from .notification import Notification, NotifySocket
from .restarts import Restarts, described, exit_status

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
#: after the host has failed us, in seconds
_PAUSE = 0.1


class Supervisor:
    """Runs *command*, and again when it fails.

    :param environment: of this process, and, but for what concerns us alone, of *command*
    :param most: how many descriptors are kept
    :param watchdog: how long *command* may be silent, in seconds; 0: for ever
    :param longest_pause: before it is started again, in seconds
    """

    def __init__(
        self,
        command: list[str],
        environment: MutableMapping[str, str],
        *,
        most: int,
        watchdog: float = 0.0,
        longest_pause: float = 5.0,
    ) -> None:
        self._command = command
        self._watchdog = watchdog
        self._manager = Manager(environment)  # our own, if we have one
        self._passed = [(valid(name), fd) for name, fd in listen_fds(environment)]
        raise_descriptor_limit()  # a child has what is passed to it before its first file
        most = min(most, child.room(len(self._passed)))
        self._store = FdStore(most)
        self._mailbox = NotifySocket()
        told = {"NOTIFY_SOCKET": self._mailbox.address, "FDSTORE": str(most)}
        if watchdog:
            told["WATCHDOG_USEC"] = str(round(watchdog * 1e6))
        self._environment = {**environment, **told}
        self._main: MainProcess | None = None
        #: who has named that, until it has ended
        self._former: MainProcess | None = None
        self._summary = ""  # what it says of itself
        self._was_ready = False  # it, or one before it
        self._is_stopping = False  # we were told to
        self._restarts = Restarts(longest_pause)
        self._start_at = time.monotonic()
        self._status: int | None = None  # of our own end
        self._selector = selectors.PollSelector()
        self._bell, self._ringer = socket.socketpair()
        self._ringer.setblocking(False)

    def run(self) -> int:
        """Until it has ended for good; gives the exit status. Call it in the main thread."""
        adopt_orphans()
        signal.set_wakeup_fd(self._ringer.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # by the bridge, too, which inherits that
        self._selector.register(self._mailbox.socket, selectors.EVENT_READ, self._listen)
        self._selector.register(self._bell, selectors.EVENT_READ, self._hear)
        while self._status is None:
            try:
                self._keep_time()
                for key, _ in self._selector.select(self._patience()):
                    key.data()
            except (OSError, MemoryError) as error:
                why = str(error) or "no memory"
                log.error("supervise: the host fails us: %s; trying again", why)
                time.sleep(_PAUSE)  # what isn't done is still waiting
        return self._status

    # ---- time -------------------------------------------------------------------------------

    def _patience(self) -> float | None:
        """How long until something is due, in seconds."""
        due = self._main.deadline if self._main else self._start_at
        until_due = None if due is None else max(0.0, due - time.monotonic())
        waits = (until_due, self._manager.patience)
        return min((wait for wait in waits if wait is not None), default=None)

    def _keep_time(self) -> None:
        now = time.monotonic()
        if not self._main:
            if now >= self._start_at:
                self._start()
        elif self._main.deadline is not None and now >= self._main.deadline:
            log.warning(
                "supervise: pid %d was silent for %g s: killing it", self._main.pid, self._watchdog
            )
            self._main.deadline = None
            self._main.send(signal.SIGKILL)
        self._manager.report(self._summary)

    def _start(self) -> None:
        descriptors = [*self._passed, *self._store]
        pid = child.start(self._command, descriptors, self._environment)
        log.info("supervise: started pid %d with %d descriptors", pid, len(descriptors))
        self._main = MainProcess(pid)

    # ---- signals, and processes that end ----------------------------------------------------

    def _hear(self) -> None:
        """The bell rang: signals say their numbers."""
        for number in self._bell.recv(64):
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stop(signal.Signals(number).name)
        self._reap()

    def _stop(self, why: str) -> None:
        self._is_stopping = True
        if self._main:
            log.info("supervise: %s: ending pid %d", why, self._main.pid)
            self._main.send(signal.SIGTERM)
        else:
            self._status = 0

    def _reap(self) -> None:
        """All children that have ended, adopted ones too."""
        gone = [each for each in (self._former, self._main) if each and each.is_gone()]
        with contextlib.suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                self._listen()  # what it has said still counts, and until it goes is known as its
                _, status = os.waitpid(ended.si_pid, 0)
                self._ended(ended.si_pid, os.waitstatus_to_exitcode(status))
        for each in gone:
            if each in (self._former, self._main):  # and no child of ours
                self._listen()
                self._ended(each.pid, None)

    def _ended(self, pid: int, end: int | None) -> None:
        if self._former and pid == self._former.pid:
            self._forget(self._former)
            self._former = None
        elif self._main and pid == self._main.pid:
            self._forget(self._main)
            self._go_on(self._main, end)

    def _go_on(self, main: MainProcess, end: int | None) -> None:
        """Without *main*, which has ended."""
        lived = time.monotonic() - main.since
        self._main, self._former = self._former, None
        if self._main:  # two would serve the same clients
            log.warning(
                "supervise: pid %d %s; pid %d goes on", main.pid, described(end), self._main.pid
            )
            self._main.has_no_successor = True
            self._entrust(self._main, main.deadline)
            return
        if self._is_stopping and end == -signal.SIGTERM:
            end = 0  # it had no handler yet
        if main.is_stopping and end is None:
            end = 0  # as far as we can know
        if main.has_no_successor and not main.is_stopping and end == 0:
            end = None  # it left its clients to nobody
        pause = self._restarts.after(end, lived, was_ready=self._was_ready)
        if pause is None or self._is_stopping:
            log.info("supervise: pid %d %s", main.pid, described(end))
            self._status = exit_status(end or 0)
            return
        log.warning(
            "supervise: pid %d %s; starting it again in %g s", main.pid, described(end), pause
        )
        self._start_at = time.monotonic() + pause

    def _entrust(self, main: MainProcess, deadline: float | None) -> None:
        """All with *main*, after another, which had this *deadline*."""
        self._main = main
        main.deadline = None if deadline is None else time.monotonic() + self._watchdog
        if self._is_stopping:
            main.send(signal.SIGTERM)

    def _forget(self, ended: MainProcess) -> None:
        if ended.pidfd is not None:
            self._selector.unregister(ended.pidfd)
            os.close(ended.pidfd)

    # ---- what we are told -------------------------------------------------------------------

    def _listen(self) -> None:
        while told := self._mailbox.receive():
            with contextlib.closing(told):
                if self._main and self._main.pid == told.pid:  # NotifyAccess=main
                    self._take(self._main, told)
                else:
                    log.warning("supervise: pid %d isn't the bridge: not heard", told.pid)

    def _take(self, main: MainProcess, told: Notification) -> None:
        said = told.variables
        name = valid(said.get("FDNAME", ""))
        if said.get("FDSTORE") == "1":
            kept = [self._store.add(name, fd) for fd in told.fds]
            if not (told.whole and all(kept)):
                log.error("supervise: no room for more descriptors: %s isn't kept", name)
        if said.get("FDSTOREREMOVE") == "1":
            self._store.remove(name)
        if "MAINPID" in said:
            self._succeed(main, told)
        self._summary = said.get("STATUS", self._summary)
        if said.get("READY") == "1":
            self._was_ready = True
            self._manager.ready()
        if said.get("STOPPING") == "1":
            self._manager.stopping()
            main.is_stopping, main.deadline = True, None  # what it gives back may take its time
        lives = "1" in (said.get("READY"), said.get("WATCHDOG"))
        if lives and self._watchdog and not main.is_stopping:
            main.deadline = time.monotonic() + self._watchdog

    def _succeed(self, main: MainProcess, told: Notification) -> None:
        """Another takes over from *main*."""
        pid = told.variables["MAINPID"]
        if pid == str(main.pid):
            return
        try:
            successor = named(told)
        except (ProcessLookupError, FileNotFoundError):  # by its pidfd, or in /proc
            log.warning("supervise: pid %s, which was to take over, is gone", pid)
            main.has_no_successor = True
            return
        except OSError as error:
            log.error("supervise: can't take pid %s for the bridge: %s", pid, error.strerror)
            return
        log.info("supervise: pid %d took over", successor.pid)
        if self._former:  # it lingers, and is nobody's any more
            self._forget(self._former)
        self._former = main
        if successor.pidfd is not None:
            self._selector.register(successor.pidfd, selectors.EVENT_READ, self._reap)
        self._entrust(successor, main.deadline)
