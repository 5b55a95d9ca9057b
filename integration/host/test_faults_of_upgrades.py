# SPDX-License-Identifier: BSD-3-Clause
"""Every system call of an upgrade fails once, on either side: there is one bridge afterwards.

Those of the threads that serve clients and operators are others' to test.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path

import pytest

from integration.injection import Fault, faults, strace
from integration.relay import Relay
from tests import client as c
from tests.client import Client
from tests.descriptors import eventfds, memory_files
from tests.holdings import await_holdings, holdings
from tests.replaceable_server import SUPERVISED, ReplaceableServer, replaceable
from tests.running_server import SERVE
from tests.visit import BAR0, DMA_COUNT, EVENTFD, INTX, IOVA, PAGE, TRIGGER, UNMASK
from tests.wire import dma_map, region, set_irqs, u64

#: at how many places the same call fails, at most
MOST = int(os.environ.get("FAULTS", "2"))
#: gives which of them calls: the bridge, or its successor
Side = Callable[[int, int], int]


def upgrade(bridge: ReplaceableServer, side: Side, *options: str) -> list[str]:
    """Gives what strace has seen on that *side*.

    :raise AssertionError: there isn't one bridge afterwards
    """
    told = len(bridge.log())
    before = holdings(bridge.pid)
    with Relay(bridge.control) as relay:
        successor = relay.successor.pid
        with strace(side(bridge.pid, successor), *options, threads=False) as trace:
            if relay.upgrade():
                bridge.await_end()
                bridge.pid = successor
            elif not bridge.lives:  # a supervisor was told that it has gone
                bridge.await_another()
            else:
                await_holdings(bridge.pid, before)
        said = bridge.log()[told:] + relay.log()
        assert "Traceback" not in said
        assert "defect" not in said
    return trace


def works(bridge: ReplaceableServer, client: Client, value: int) -> None:
    expected = u64(value)
    client.ask(c.REGION_WRITE, region(DMA_COUNT, BAR0, expected))
    assert client.ask(c.REGION_READ, region(DMA_COUNT, BAR0, 8))[16:] == expected
    assert bridge.status()["clients"] == 1


@pytest.mark.parametrize("command", [SERVE, SUPERVISED], ids=["alone", "supervised"])
@pytest.mark.parametrize(
    ("side", "last"),
    [(lambda old, _new: old, "gone"), (lambda _old, new: new, "ready")],
    ids=["old", "new"],
)
def test_every_call_may_fail(tmp_path: Path, side: Side, last: str, command: list[str]) -> None:
    happened: list[Fault] = []
    with ExitStack() as stack:
        bridge = stack.enter_context(replaceable(tmp_path, command=command))
        client = stack.enter_context(bridge.client())
        (ram,) = stack.enter_context(memory_files(1))
        event, unmask = stack.enter_context(eventfds(2))
        client.ask(c.DMA_MAP, dma_map(IOVA, PAGE), [ram])
        client.ask(c.SET_IRQS, set_irqs(EVENTFD | TRIGGER, INTX, 0, 1), [event])
        client.ask(c.SET_IRQS, set_irqs(EVENTFD | UNMASK, INTX, 0, 1), [unmask])
        upgrade(bridge, side)  # what comes of it is compared with what came of another
        works(bridge, client, 0)  # so it has all its threads
        # From there on it is alone, and fails as any other bridge does.
        trace = takewhile(lambda line: last not in line, upgrade(bridge, side))
        works(bridge, client, 0)
        counts = Counter(call for line in trace for call in re.findall(r"^(\w+)\(", line))
        # How often it starts what it will need is different each time: the first is before that.
        most = MOST if last == "gone" else 1
        for number, fault in enumerate(faults(counts, most=most, errnos=("ENOMEM",))):
            print(fault)
            seen = upgrade(bridge, side, "-e", f"trace={fault.call}", "-e", fault.option)
            works(bridge, client, number)
            happened += [fault] * any("(INJECTED)" in line for line in seen)
    print(f"{len(happened)} faults of {len({fault.call for fault in happened})} system calls")
    assert {"recvfrom", "poll"} <= {fault.call for fault in happened}
