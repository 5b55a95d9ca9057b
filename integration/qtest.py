# SPDX-License-Identifier: BSD-3-Clause
"""QEMU without a guest: `-accel qtest`, where a test is the CPU.

The protocol is lines of text (system/qtest.c): a command, an answer that starts with OK, and at
any time between them IRQ lines, for the interrupt controller that is intercepted.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Self

from integration import qemu

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

MEMORY_MIB = 64
#: seconds; QEMU starts in 2, but with hugepages on a busy machine in 20
TIMEOUT = 120.0
#: How long something is given to happen, when it should and when it shouldn't, in seconds.
SOON = 5.0
NEVER = 0.1

SUFFIX = {1: "b", 2: "w", 4: "l", 8: "q"}


class QtestError(Exception):
    """QEMU refused a command or is gone. The text has what it said on standard error."""


class Qtest:
    """A q35 machine with 64 MiB of memory that other processes can map.

    All addresses are guest-physical; all sizes are in bytes.
    """

    def __init__(self, *arguments: str) -> None:
        """Start QEMU, with `arguments` behind those of the machine.

        :raise StepError: there is no QEMU and it can't be built.
        """
        command = qemu.find()
        #: the interrupt controller's inputs that are high now
        self.lines: set[int] = set()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*command, *_machine(theirs.fileno()), *arguments],
                stdin=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=[theirs.fileno()],
            )
        ours.settimeout(TIMEOUT)
        self._socket = ours
        self._answers = ours.makefile("r", encoding="ascii")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._answers.close()
        self._socket.close()
        self._process.kill()
        self._process.wait()
        self._stderr.close()

    def kill(self) -> None:
        """SIGKILL for QEMU: the command under way, if there is one, is a `QtestError`."""
        self._process.kill()
        self._process.wait()

    def command(self, *words: object) -> str:
        """Give one command; return what follows OK in the answer.

        :raise QtestError: QEMU says FAIL, or ended.
        """
        text = " ".join(map(str, words))
        try:
            self._socket.sendall(f"{text}\n".encode("ascii"))
            answer = self._answer()
        except (OSError, EOFError) as error:
            self._stderr.seek(0)
            said = self._stderr.read().decode(errors="replace")
            raise QtestError(f"no answer to {text!r}; QEMU said: {said}") from error
        status, _, value = answer.partition(" ")
        if status != "OK":
            raise QtestError(f"{text!r}: {answer}")
        return value

    def _answer(self) -> str:
        while line := self._answers.readline():
            words = line.split()
            match words:
                case ["IRQ", "raise", number]:
                    self.lines.add(int(number))
                case ["IRQ", "lower", number]:
                    self.lines.discard(int(number))
                case _:
                    return line.rstrip()
        raise EOFError

    def load(self, address: int, size: int) -> int:
        """Read `size` (1, 2, 4 or 8) bytes as one access."""
        return int(self.command(f"read{SUFFIX[size]}", hex(address)), 16)

    def store(self, address: int, size: int, value: int) -> None:
        """Write `size` (1, 2, 4 or 8) bytes as one access."""
        self.command(f"write{SUFFIX[size]}", hex(address), hex(value))

    def port_in(self, port: int, size: int) -> int:
        return int(self.command(f"in{SUFFIX[size]}", hex(port)), 16)

    def port_out(self, port: int, size: int, value: int) -> None:
        self.command(f"out{SUFFIX[size]}", hex(port), hex(value))

    def read(self, address: int, count: int) -> bytes:
        """Return memory; for device registers see `load`."""
        return bytes.fromhex(self.command("read", hex(address), hex(count)).removeprefix("0x"))

    def write(self, address: int, data: bytes) -> None:
        self.command("write", hex(address), hex(len(data)), f"0x{data.hex()}")

    def memset(self, address: int, count: int, value: int) -> None:
        self.command("memset", hex(address), hex(count), hex(value))

    def clock_step(self, nanoseconds: int) -> None:
        """Let virtual time pass; timers that expire meanwhile run."""
        self.command("clock_step", nanoseconds)

    def intercept_irqs(self, path: str = "ioapic") -> None:
        """Follow the inputs of the interrupt controller at the QOM path `path` in `lines`."""
        self.command("irq_intercept_in", path)

    def reset(self) -> None:
        """Reset the machine as its guest can, through ICH9's RST_CNT register."""
        self.port_out(0xCF9, 1, 0x06)
        self.command("endianness")  # QEMU resets between two commands

    def until(self, condition: Callable[[], bool], timeout: float = SOON) -> bool:
        """Let QEMU run until `condition` holds; return whether it came to that.

        What another process does reaches QEMU through its main loop, not between commands.

        :param timeout: seconds.
        """
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
            self.command("endianness")
        return True


def _machine(qtest_fd: int) -> list[str]:
    memory = f"memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on"
    return [
        *("-nodefaults", "-no-user-config", "-display", "none", "-accel", "qtest"),
        *("-machine", "q35,memory-backend=memory", "-m", f"{MEMORY_MIB}M", "-object", memory),
        *("-chardev", f"socket,id=qtest,fd={qtest_fd}", "-qtest", "chardev:qtest"),
    ]
