# SPDX-License-Identifier: BSD-3-Clause
"""Have the system calls of a running server fail, one at a time (strace(1), "Tampering").

strace is attached to a server that is ready and let go again, so that only serving is hit, and one
server lives through it all.
"""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.holdings import await_holdings, await_no_client, holdings

ERRNOS = ("EINTR", "EMFILE", "ENOMEM", "ENOSPC")

#: What isn't made to fail, for the kernel never does and the C library relies on it: locks, and a
#: thread's first and last steps.
NEVER_FAILS = {
    *("exit", "exit_group", "futex", "rseq", "rt_sigprocmask", "set_robust_list"),
    "restart_syscall",  # no call of the program's: strace itself interrupts one as it attaches
}
#: The kernel does these whatever it answers, but what strace makes fail isn't done.
DONE_ALL_THE_SAME = {"close", "munmap"}


@dataclass(frozen=True)
class Fault:
    """The *occurrence*-th time that a thread calls *call*, it fails with *errno*."""

    call: str
    occurrence: int
    errno: str

    def __str__(self) -> str:
        return f"{self.call} #{self.occurrence}: {self.errno}"

    @property
    def option(self) -> str:
        return f"inject={self.call}:error={self.errno}:when={self.occurrence}"


@contextmanager
def strace(pid: int, *options: str, threads: bool = True) -> Iterator[list[str]]:
    """Follow the process, in all its *threads* or its first; at the end the list has what strace
    wrote.
    """
    calls: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output")
        follow = ("-f",) if threads else ()
        command = ("strace", *follow, "-o", str(output), *options, "-p", str(pid))
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr
            try:
                said = tracer.stderr.readline()
                assert "attached" in said, said
                yield calls
            finally:
                tracer.send_signal(signal.SIGINT)  # it lets go
                tracer.wait(60)
        calls += output.read_text().splitlines()


def faults(
    counts: Mapping[str, int], *, most: int, errnos: Sequence[str] = ERRNOS
) -> Iterator[Fault]:
    """Each call fails with each errno, at *most* of its occurrences: from the first to the last."""
    for call, count in sorted(counts.items()):
        if call not in NEVER_FAILS | DONE_ALL_THE_SAME:
            chosen = {1 + at * (count - 1) // max(1, most - 1) for at in range(most)}
            for occurrence in sorted(chosen):
                yield from (Fault(call, occurrence, errno) for errno in errnos)


class Survivor:
    """A server that must live through faults.

    :param pid: the process
    :param log: what it has logged so far
    :param forgiving: a client's visit that bears refusals, and the end of the connection
    :param strict: one that doesn't
    """

    def __init__(
        self,
        pid: int,
        log: Callable[[], str],
        forgiving: Callable[[], None],
        strict: Callable[[], None],
    ) -> None:
        self._pid = pid
        self._log = log
        self._forgiving = forgiving
        self._strict = strict
        idle = holdings(pid)
        strict()  # what is loaded or set up when it is first needed, is now
        self._before = await_no_client(pid, idle)

    def calls(self) -> Counter[str]:
        """How often a thread makes each system call during a visit, at most."""
        counts: Counter[tuple[str, str]] = Counter()
        with strace(self._pid) as trace:
            self._strict()
            await_holdings(self._pid, self._before)
        for line in trace:
            if found := re.match(r"(\d+) +(\w+)\(", line):
                counts[found[1], found[2]] += 1
        most: Counter[str] = Counter()
        for (_, call), count in counts.items():
            most[call] = max(most[call], count)
        return most

    def suffer(self, fault: Fault) -> bool:
        """Have the fault happen, and see that all is well afterwards; gives whether it did.

        :raise AssertionError: what isn't
        """
        told = len(self._log())
        with strace(self._pid, "-e", f"trace={fault.call}", "-e", fault.option) as trace:
            self._forgiving()
            await_no_client(self._pid, self._before)
        self._strict()
        await_holdings(self._pid, self._before)
        log = self._log()[told:]
        assert "Traceback" not in log, f"{fault}: {log}"
        assert "defect" not in log, f"{fault}: {log}"
        return any("(INJECTED)" in line for line in trace)
