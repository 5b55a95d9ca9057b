# SPDX-License-Identifier: BSD-3-Clause
"""One hostile client after another: whatever they send, the next one finds a device that works.

hypothesis drives: it finds sequences of messages, good, odd and broken, that end a session in any
way but the two that it may end in, leave a descriptor or a map behind, or change the device by a
request that is refused.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, closing
from itertools import pairwise
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vfio_user_bridge import models

from . import client as c
from .client import Reply
from .descriptors import open_descriptors
from .engines import NATIVE, Talk
from .hostile_files import KINDS, hostile_files
from .request_sequences import KINDS as REQUESTS
from .request_sequences import Request
from .wire import message, region, u16, u32

BAR0, CONFIG = 0, 7
#: edu's registers that reading doesn't change, and its config space: what a client could change
STATE = [
    *(region(offset, BAR0, 4) for offset in (0x00, 0x04, 0x08, 0x20, 0x24)),
    *(region(offset, BAR0, 8) for offset in (0x80, 0x88, 0x90, 0x98)),
    region(0, CONFIG, 256),
]
COMMANDS = st.integers(0, 20) | st.integers(0, 0xFFFF)
U32 = st.sampled_from([0, 1, 4, 8, 16, 32, 4096, 1 << 31, (1 << 32) - 1]) | st.integers(
    0, 2**32 - 1
)
FILES = st.lists(st.sampled_from(sorted(KINDS)), max_size=4)


class Hostile(RuleBasedStateMachine):
    """Clients of one edu."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.files = self.stack.enter_context(hostile_files())
        self.edu = self.stack.enter_context(closing(models.create("edu")))
        self.before = open_descriptors().keys()
        self.session = Talk(NATIVE, self.edu)
        self.session.client.negotiate()

    def teardown(self) -> None:
        self._next()
        self.session.end()
        assert open_descriptors().keys() == self.before
        self.stack.close()

    def _next(self) -> None:
        """The client goes, and the next one is served."""
        self.session.end()
        assert open_descriptors().keys() <= self.before
        self.session = Talk(NATIVE, self.edu)
        self.session.client.negotiate()

    def _state(self) -> list[bytes]:
        return [self.session.client.ask(c.REGION_READ, access) for access in STATE]

    def _put(self, request: Request, files: list[str]) -> None:
        """Send it; if it is refused, the device is as before."""
        before = self._state()
        fds = [self.files[name] for name in files]
        client = self.session.client
        client.send(request.command, request.payload, fds, flags=request.flags)
        if request.flags & c.NO_REPLY:
            return
        reply = client.receive()
        _close(reply)
        if reply.error:
            assert reply.flags == c.REPLY | c.ERROR
            assert self._state() == before

    @rule(seed=st.integers(0, 2**32))
    def asks(self, seed: int) -> None:
        random = Random(seed)  # to be the same each time
        request = random.choice(REQUESTS)(random)
        self._put(request, list(request.files))

    @rule(seed=st.integers(0, 2**32), files=FILES)
    def asks_with_any_files(self, seed: int, files: list[str]) -> None:
        random = Random(seed)
        self._put(random.choice(REQUESTS)(random), files)

    @rule(command=st.integers(0, 20), numbers=st.lists(U32, max_size=12), files=FILES)
    def asks_nonsense(self, command: int, numbers: list[int], files: list[str]) -> None:
        self._put(Request(command, u32(*numbers)), files)

    @rule(seed=st.integers(0, 2**32), cuts=st.lists(st.integers(0, 63), max_size=6))
    def stutters(self, seed: int, cuts: list[int]) -> None:
        """One message in many pieces; then the reply is as if it had come whole."""
        random = Random(seed)
        request = random.choice(REQUESTS)(random)
        data = message(request.command, request.payload, number=1)
        places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
        for begin, end in pairwise(places):
            self.session.client.socket.sendall(data[begin:end])
        _close(self.session.client.receive())

    @rule(
        size=U32, command=COMMANDS, flags=st.integers(1, 0xF) | U32, rest=st.binary(max_size=64),
        files=FILES,
    )  # fmt: skip
    def breaks_the_stream(
        self, size: int, command: int, flags: int, rest: bytes, files: list[str]
    ) -> None:
        """A header that says anything. It is answered, waited for, or the end of the client."""
        data = u16(1, command) + u32(size, flags, 0) + rest
        fds = [self.files[name] for name in files]
        socket.send_fds(self.session.client.socket, [data], fds)
        self._next()

    @rule(data=st.binary(min_size=1, max_size=200))
    def talks_rubbish(self, data: bytes) -> None:
        self.session.client.socket.sendall(data)
        self._next()

    @rule()
    def goes(self) -> None:
        self._next()

    @invariant()
    def the_session_has_no_defect(self) -> None:
        assert self.session.error is None


def _close(reply: Reply) -> None:
    for fd in reply.fds:
        os.close(fd)


TestHostile = Hostile.TestCase
TestHostile.settings = settings(max_examples=60, stateful_step_count=30)
