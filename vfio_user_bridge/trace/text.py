# SPDX-License-Identifier: BSD-3-Clause
"""Records in words: a line each, for people."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Iterator

from vfio_user_bridge.device import PciIrq
from vfio_user_bridge.messages import DmaFlags, IrqSetFlags
from vfio_user_bridge.terminal import Styled, Text

from .names import Names
from .records import (
    KINDS,
    Access,
    Client,
    End,
    Header,
    Irqs,
    Map,
    Read,
    Record,
    Reset,
    Unmap,
    Write,
)

_WIDEST = 8  # bytes, of what is shown as a number
_LONGEST = 32  # bytes that are shown of the rest

_STYLES: dict[type[Record], str] = {
    Write: "bold",
    Irqs: "cyan",
    Map: "blue",
    Unmap: "blue",
    Reset: "magenta",
    Client: "magenta",
    End: "magenta",
}
_IRQS: dict[int, str] = {
    PciIrq.INTX: "INTx",
    PciIrq.MSI: "MSI",
    PciIrq.MSIX: "MSI-X",
    PciIrq.ERR: "error interrupt",
    PciIrq.REQ: "device request",
}


def title(header: Header) -> str:
    """Of which device, recorded when and by what; the time is UTC."""
    # A clock that was wrong, or a damaged file, may have any number here.
    seconds = min(header.time // 10**9, 253_402_300_799)  # the last second of the year 9999
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    return f"{header.device}, recorded {when} UTC by vfio-user-bridge {header.bridge}"


def lines(header: Header, records: Iterable[Record], names: Names) -> Iterator[Text]:
    """What the recording is of, and a line for each record."""
    yield title(header)
    for record in records:
        style = "red" if record.errno else _STYLES.get(type(record), "")
        yield Styled(line(record, names), style) if style else line(record, names)


def line(record: Record, names: Names) -> str:
    """When (in seconds), how long it took, and what it was."""
    took = "" if type(record) is End else duration(record.latency)
    return f"{record.t / 1e9:12.6f} {took:>8}  {asked(record, names)}"


def asked(record: Record, names: Names) -> str:
    """What it was."""
    said = words(record, names)
    if record.errno:
        said = f"{said}  {error_name(record.errno)}".lstrip()
    return f"{kind(record):6}  {said}".rstrip()


def kind(record: Record) -> str:
    return KINDS[type(record)].name.lower()


def words(record: Record, names: Names) -> str:
    """What it was, but for its kind."""
    match record:
        case Read() | Write():
            return _access(record, names)
        case Irqs():
            return irqs(record)
        case Map():
            access = ("r" if record.flags & DmaFlags.READ else "-") + (
                "w" if record.flags & DmaFlags.WRITE else "-"
            )
            memory = "guest memory" if record.file else "no memory with it"
            return f"{_range(record)} {access}, {memory}"
        case Unmap():
            return _range(record)
        case Reset():
            return ""
        case Client():
            return "came" if record.came else "went"
        case End():
            return record.reason


def _access(record: Access, names: Names) -> str:
    place = names.where(record.region, record.offset, record.count)
    if record.errno or not record.data:
        return f"{place} ({record.count} bytes)"
    found = names.fields(record.region, record.offset, record.data)
    fields = "".join(f" {name}={what}" for name, what in found.items() if what != 0)
    short = "" if len(record.data) == record.count else f" ({record.count} bytes asked for)"
    return f"{place} = {value(record.data)}{fields}{short}"


def value(data: bytes) -> str:
    """As a number, which is little-endian, if it may be one; else the first bytes."""
    if len(data) in (1, 2, 4, 8):
        return f"{int.from_bytes(data, 'little'):#0{2 + 2 * len(data)}x}"
    rest = f"… ({len(data)} bytes)" if len(data) > _LONGEST else ""
    return data[:_LONGEST].hex(" ") + rest


def irqs(record: Irqs) -> str:
    """``MSI-X: vectors 0-3 get eventfds``."""
    name = irq_name(record.index)
    flags, count = record.flags, record.count
    if flags & IrqSetFlags.ACTION_TRIGGER and not count:
        return f"{name}: off"
    several = count > 1
    who = f"vector {record.start}"
    if several:
        who = f"vectors {record.start}-{record.start + count - 1}"
    s = "" if several else "s"
    if flags & IrqSetFlags.DATA_EVENTFD:
        what = "eventfds" if several else "an eventfd"
        if not record.eventfds:
            did = f"lose{s} {'their' if several else 'its'} eventfd{'s' if several else ''}"
        elif flags & IrqSetFlags.ACTION_TRIGGER:
            did = f"get{s} {what}"
        elif flags & IrqSetFlags.ACTION_MASK:
            did = f"masked by {what}"
        else:
            did = f"unmasked by {what}"
    else:
        action = next(
            (action for bit, action in _ACTIONS.items() if flags & bit), f"flags {flags:#x}"
        )
        did = action + (f", where {record.data.hex(' ')}" if record.data else "")
    return f"{name}: {who} {did}"


_ACTIONS = {
    IrqSetFlags.ACTION_MASK: "masked",
    IrqSetFlags.ACTION_UNMASK: "unmasked",
    IrqSetFlags.ACTION_TRIGGER: "triggered",
}


def irq_name(index: int) -> str:
    return _IRQS.get(index, f"interrupt {index}")


def _range(record: Map | Unmap) -> str:
    return f"{record.iova:#x}-{record.iova + record.size - 1:#x}"


def error_name(number: int) -> str:
    return errno.errorcode.get(number, f"errno {number}")


def duration(nanoseconds: float) -> str:
    """In two or three digits: ``850 ns``, ``4.2 µs``, ``120 ms``."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= size:
            number = nanoseconds / size
            return f"{number:.1f} {unit}" if number < 9.95 else f"{number:.0f} {unit}"
    return f"{nanoseconds:.0f} ns"
