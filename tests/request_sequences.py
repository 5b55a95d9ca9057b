# SPDX-License-Identifier: BSD-3-Clause
"""Long random sequences of requests to edu: each a message that can be parsed, wise or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from . import client as c
from .wire import dma_map, dma_unmap, region, set_irqs, u32, u64

PAGE = 4096
#: IOVAs that maps start at; what is mapped is 1 to 3 pages long, so neighbours can overlap
SLOTS = range(0, 16 * PAGE, 2 * PAGE)
FILE_SIZE = 8 * PAGE

BAR0, CONFIG = 0, 7
REGISTERS = (0x00, 0x04, 0x08, 0x20, 0x24, 0x60, 0x64, 0x80, 0x88, 0x90, 0x98)
#: what drivers write: config space's command register and MSI's; nothing that other offsets need
CONFIG_REGISTERS = (0x04, 0x06, 0x0C, 0x10, 0x14, 0x30, 0x3C, 0x42, 0x44, 0x48, 0x4C, 0x80)
ODD = 0.1  # of the numbers are none that a driver would use


@dataclass(frozen=True)
class Request:
    """*files* says what goes along: "memory" or "eventfd"."""

    command: int
    payload: bytes = b""
    files: tuple[str, ...] = ()
    flags: int = 0


def sequence(seed: int, length: int) -> Iterator[Request]:
    random = Random(seed)  # to be the same each time
    for _ in range(length):
        yield random.choice(KINDS)(random)


def _odd(random: Random) -> bool:
    return random.random() < ODD


def _info(random: Random) -> Request:
    return Request(c.GET_INFO, u32(random.choice((16, 16, 15, 64)), 0, 0, 0))


def _region_info(random: Random) -> Request:
    argsz = random.choice((31, 32, 40, 64, 4096))
    return Request(c.GET_REGION_INFO, u32(argsz, 0, random.randrange(11), 0) + u64(0, 0))


def _io_fds(random: Random) -> Request:
    argsz, flags, count = random.choice(
        ((16, 0, 0), (64, 0, 0), (15, 0, 0), (64, 1, 0), (64, 0, 1))
    )
    return Request(c.GET_REGION_IO_FDS, u32(argsz, flags, random.randrange(11), count))


def _irq_info(random: Random) -> Request:
    return Request(c.GET_IRQ_INFO, u32(random.choice((16, 64)), 0, random.randrange(7), 0))


def _place(random: Random) -> tuple[int, int, int]:
    """Region, offset and size of an access."""
    if _odd(random):
        return (
            random.randrange(11),
            random.choice((0, 1, 255, 256, (1 << 20) - 1, 1 << 20, (1 << 64) - 4)),
            random.choice((0, 1, 3, 5, 16, 256)),
        )
    if random.random() < 0.4:
        return CONFIG, random.choice(CONFIG_REGISTERS), random.choice((1, 2, 4))
    return BAR0, random.choice(REGISTERS), random.choice((4, 4, 8))


def _read(random: Random) -> Request:
    index, offset, size = _place(random)
    return Request(c.REGION_READ, region(offset, index, size))


def _write(random: Random) -> Request:
    index, offset, size = _place(random)
    value = random.choice((0, 1, 3, 5, 0x80, 0x407, random.getrandbits(64)))
    data = value.to_bytes(8, "little")[:size].ljust(size, b"\0")
    if _odd(random):
        return Request(c.REGION_WRITE, region(offset, index, size) + data[1:])
    return Request(c.REGION_WRITE, region(offset, index, data))


def _no_reply(random: Random) -> Request:
    write = _write(random)
    return Request(write.command, write.payload, write.files, c.NO_REPLY)


def _dma(random: Random) -> Request:
    """Of edu's own: start what the DMA registers say, whatever it is."""
    return Request(c.REGION_WRITE, region(0x98, BAR0, u64(random.choice((1, 3, 5, 7)))))


def _map(random: Random) -> Request:
    address, size = random.choice(SLOTS), random.choice((1, 1, 2, 3)) * PAGE
    offset, flags = random.choice((0, 1, 2)) * PAGE, random.choice((1, 2, 3, 3, 3))
    files = ("memory",) * random.choice((0, 1, 1))
    if _odd(random):
        match random.randrange(5):
            case 0:
                flags = random.choice((0, 4, 8, 0x80000000))
            case 1:
                size = random.choice((0, 1, PAGE + 1))
            case 2:
                address = random.choice((1, (1 << 64) - PAGE))
            case 3:
                files = ("memory",) * 2
            case 4:
                offset = FILE_SIZE
    return Request(c.DMA_MAP, dma_map(address, size, offset=offset, flags=flags), files)


def _unmap(random: Random) -> Request:
    address, size, flags = random.choice(SLOTS), random.choice((1, 1, 2, 3)) * PAGE, 0
    if _odd(random):
        address, size, flags = random.choice(
            ((0, 0, 2), (0, PAGE, 2), (0, 0, 0), (0, 1 << 63, 0), (PAGE, PAGE, 0), (0, PAGE, 8))
        )
    return Request(c.DMA_UNMAP, dma_unmap(address, size, flags=flags))


def _irqs(random: Random) -> Request:
    data, action = random.choice((1, 2, 4, 4)), random.choice((8, 16, 32, 32, 32))
    index, start, count = random.choice((0, 1, 1, 2, 4)), 0, random.choice((0, 1, 1, 1))
    if _odd(random):
        index, start, count = random.randrange(7), random.randrange(3), random.randrange(3)
    if _odd(random):
        data = random.choice((0, 3, 5))
    if not count and not _odd(random):
        data, action = 1, 32
    bools = bytes(random.choice((0, 1)) for _ in range(count)) if data == 2 else b""
    files = ("eventfd",) * random.choice((count, count, 0)) if data == 4 else ()
    return Request(c.SET_IRQS, set_irqs(data | action, index, start, count, bools), files)


def _reset(_random: Random) -> Request:
    return Request(c.RESET)


def _feature(random: Random) -> Request:
    flags = random.choice((0, 1, 2, 3, 4, 5, 6, 7)) << 16 | random.randrange(12)
    return Request(c.FEATURE, u32(64, flags))


def _migration(random: Random) -> Request:
    command = random.choice((c.MIG_DATA_READ, c.MIG_DATA_WRITE))
    return Request(command, u32(64, 8) + (bytes(8) if command == c.MIG_DATA_WRITE else b""))


def _several(_random: Random) -> Request:
    # To a register that can't be written: not every engine does it.
    return Request(c.REGION_WRITE_MULTI, u64(1) + u64(0) + u32(BAR0, 4) + u64(1))


def _unknown(random: Random) -> Request:
    return Request(random.choice((0, 11, 12, 14, 19, 0xFFFF)), bytes(16))


#: one of these each time; more often what drivers do more often
KINDS: list[Callable[[Random], Request]] = [
    *(_info, _region_info, _io_fds, _irq_info, _reset, _no_reply),
    *(_feature, _migration, _several, _unknown, _dma, _dma),
    *(_read, _read, _read, _read, _read, _write, _write, _write, _write, _write, _write),
    *(_map, _map, _map, _unmap, _unmap, _irqs, _irqs, _irqs, _irqs, _irqs),
]
