# SPDX-License-Identifier: BSD-3-Clause
"""Records as JSON, for programs. docs/users/trace.md has what is in them: add, don't rename."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from .names import Names, region_name
from .records import Header, Irqs, Read, Record, Write
from .text import error_name, irq_name, kind


def lines(header: Header, records: Iterable[Record], names: Names) -> Iterator[str]:
    """An object a line; the first is the header."""
    yield json.dumps({"kind": "header", **described(header)})
    for record in records:
        yield json.dumps({"kind": kind(record), **_values(record, names)})


def described(header: Header) -> dict[str, Any]:
    regions = [
        {"region": region_name(region.index), "flags": region.flags, "size": region.size}
        for region in header.regions
    ]
    irqs = [
        {"irq": irq_name(irq.index), "flags": irq.flags, "count": irq.count} for irq in header.irqs
    ]
    return {
        "device": header.device,
        "bridge": header.bridge,
        "time": header.time,
        "regions": regions,
        "irqs": irqs,
        "config": header.config.hex(),
    }


def _values(record: Record, names: Names) -> dict[str, Any]:
    """Bytes are hexadecimal, times nanoseconds; an error has its name too."""
    values = asdict(record)
    if record.errno:
        values["error"] = error_name(record.errno)
    match record:
        case Read() | Write():
            place = record.region, record.offset
            values["region"] = region_name(record.region)
            values["data"] = record.data.hex()
            values["register"] = names.name(*place, record.count) or None
            values["fields"] = names.fields(*place, record.data)
        case Irqs():
            values["irq"] = irq_name(record.index)
            values["data"] = record.data.hex()
    return values
