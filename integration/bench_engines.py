# SPDX-License-Identifier: BSD-3-Clause
"""What each engine costs, side by side: ``LIBVFIO_USER=... python -m integration.bench_engines``.

Both serve model:edu at the same time, each in a process of its own, and are asked by turns, so that
whatever else the machine does meets both alike. Figures are medians, in microseconds.
"""

from __future__ import annotations

import os
import select
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from tests import client as c
from tests.client import Client
from tests.running_server import server
from tests.wire import dma_map, dma_unmap, message, region, set_irqs, u32
from vfio_user_bridge.models.edu import Register

ENGINES = ("native", "libvfio-user")
TURNS = 5000
WARM_UP = 200
BAR0, CONFIG = 0, 7
_INTX, _MSI = 0, 1
_SET_EVENTFDS, _UNMASK_BY_EVENTFD, _OFF = 0x24, 0x14, 0x21


def _ask(client: Client, request: bytes, reply_size: int, fds: list[int] | None = None) -> None:
    """One round trip, with as little around it as Python allows."""
    sock = client.socket
    if fds:
        sock.sendmsg([request], [(1, 1, b"".join(fd.to_bytes(4, "little") for fd in fds))])
    else:
        sock.send(request)
    got = len(sock.recv(reply_size))
    assert got == reply_size, got


def _reading(client: Client) -> Callable[[], None]:
    request = message(c.REGION_READ, region(0, CONFIG, 4))
    return lambda: _ask(client, request, 36)


def _interrupting(client: Client) -> Callable[[], None]:
    """From the write that raises an interrupt until the client's eventfd has it."""
    event = os.eventfd(0, os.EFD_NONBLOCK)
    client.ask(c.SET_IRQS, set_irqs(_SET_EVENTFDS, _MSI, 0, 1), [event])
    request = message(c.REGION_WRITE, region(Register.IRQ_RAISE, BAR0, u32(1)))
    poll = select.poll()
    poll.register(event, select.POLLIN)

    def interrupt() -> None:
        client.socket.send(request)
        poll.poll()
        os.eventfd_read(event)

    return interrupt


def _relaying(client: Client) -> Callable[[], None]:
    """From an INTx unmask eventfd, which a thread of edu waits for, to the client's eventfd.

    The line is held all the time, so that each unmask makes an interrupt. What the engines differ
    in is the relay: no message is under way.
    """
    event, unmask = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0)
    client.ask(c.SET_IRQS, set_irqs(_OFF, _MSI, 0, 0))
    client.ask(c.SET_IRQS, set_irqs(_SET_EVENTFDS, _INTX, 0, 1), [event])
    client.ask(c.SET_IRQS, set_irqs(_UNMASK_BY_EVENTFD, _INTX, 0, 1), [unmask])
    client.ask(c.REGION_WRITE, region(Register.IRQ_RAISE, BAR0, u32(1)))
    poll = select.poll()
    poll.register(event, select.POLLIN)
    poll.poll()
    os.eventfd_read(event)

    def unmasked() -> None:
        os.eventfd_write(unmask, 1)
        poll.poll()
        os.eventfd_read(event)

    return unmasked


def _mapping(client: Client) -> Callable[[], None]:
    memory = os.memfd_create("ram")
    os.truncate(memory, 1 << 30)
    map_ = message(c.DMA_MAP, dma_map(0, 1 << 30))
    unmap = message(c.DMA_UNMAP, dma_unmap(0, 1 << 30))

    def map_and_unmap() -> None:
        _ask(client, map_, 16, [memory])
        _ask(client, unmap, 40)

    return map_and_unmap


def _writing(client: Client) -> Callable[[], None]:
    request = message(c.REGION_WRITE, region(Register.IDENTIFICATION, BAR0, u32(1)))
    return lambda: _ask(client, request, 32)


#: what is measured, and what must be taken from the socket after each turn, in bytes
MEASUREMENTS = {
    "REGION_READ of 4 bytes, round trip": (_reading, 0),
    "REGION_WRITE of 4 bytes, round trip": (_writing, 0),
    "interrupt, from the write that raises it to the client's eventfd": (_interrupting, 32),
    "interrupt, from the eventfd that unmasks INTx to the client's eventfd": (_relaying, 0),
    "DMA_MAP of 1 GiB and DMA_UNMAP, two round trips": (_mapping, 0),
}


def measure(clients: list[Client]) -> Iterator[tuple[str, list[float]]]:
    """What was measured and its median for each engine, in microseconds."""
    for what, (prepare, rest) in MEASUREMENTS.items():
        turns = [prepare(client) for client in clients]
        times: list[list[float]] = [[] for _ in turns]
        for _ in range(WARM_UP + TURNS):
            for turn, client, mine in zip(turns, clients, times, strict=True):
                begun = time.perf_counter()
                turn()
                mine.append((time.perf_counter() - begun) * 1e6)
                if rest:
                    assert len(client.socket.recv(rest)) == rest
        yield what, [statistics.median(mine[WARM_UP:]) for mine in times]


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        clients = []
        for engine in ENGINES:
            path = folder / f"{engine}.sock"
            options = ("--socket-path", str(path), "--engine", engine)
            served = stack.enter_context(server(path, *options))
            clients.append(stack.enter_context(served.client()))
        print(f"| median of {TURNS}, µs | {' | '.join(ENGINES)} |")
        print("|---|" + "---|" * len(ENGINES))
        for what, medians in measure(clients):
            print(f"| {what} | {' | '.join(f'{median:.1f}' for median in medians)} |", flush=True)


if __name__ == "__main__":
    main()
