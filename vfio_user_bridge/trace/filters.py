# SPDX-License-Identifier: BSD-3-Clause
"""Which records of a trace are wanted, as the options of `trace show` and others say it."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from vfio_user_bridge.device import REGIONS
from vfio_user_bridge.errors import UsageError

from .records import KINDS, Access, Kind, Record

#: what --command takes
COMMANDS = tuple(kind.name.lower() for kind in Kind if kind is not Kind.END)

_HEXADECIMAL = r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}"


@dataclass(frozen=True, slots=True)
class Filter:
    """What isn't said lets everything pass; times are in nanoseconds since the beginning.

    *regions* and *offsets*, of which the last counts too, let pass accesses alone.
    """

    kinds: Collection[Kind] | None = None
    regions: Collection[int] | None = None
    offsets: tuple[int, int] | None = None
    since: float = -math.inf
    until: float = math.inf

    def passes(self, record: Record) -> bool:
        if not self.since <= record.t <= self.until:
            return False
        if self.kinds is not None and KINDS[type(record)] not in self.kinds:
            return False
        if self.regions is None and self.offsets is None:
            return True
        if not isinstance(record, Access):
            return False
        if self.regions is not None and record.region not in self.regions:
            return False
        if self.offsets is None:
            return True
        first, last = self.offsets
        return record.offset <= last and first < record.offset + max(record.count, 1)


def parse(
    *,
    commands: str | None = None,
    regions: Iterable[str] = (),
    offsets: str | None = None,
    since: str | None = None,
    until: str | None = None,
) -> Filter:
    """Of the options' texts.

    :raise UsageError: one can't mean anything
    """
    return Filter(
        None if commands is None else [_kind(name) for name in commands.split(",")],
        [_region(name) for name in regions] or None,
        None if offsets is None else _offsets(offsets),
        -math.inf if since is None else _time("--since", since),
        math.inf if until is None else _time("--until", until),
    )


def _kind(name: str) -> Kind:
    if name not in COMMANDS:
        raise UsageError(f"--command: there is no {name!r}; there are: {', '.join(COMMANDS)}")
    return Kind[name.upper()]


def _region(name: str) -> int:
    if name in REGIONS:
        return REGIONS[name]
    if re.fullmatch("[0-9]{1,4}", name, re.ASCII):
        return int(name)
    raise UsageError(
        f"--region: there is no {name!r}; there are: {', '.join(REGIONS)}, or take its number"
    )


def _offsets(text: str) -> tuple[int, int]:
    found = re.fullmatch(f"({_HEXADECIMAL})(?:-({_HEXADECIMAL}))?", text, re.ASCII)
    first, last = (_number(found[1]), _number(found[2] or found[1])) if found else (1, 0)
    if first > last:
        raise UsageError(f"--offset: {text!r} is not as 0x14, or as 0x1000-0x1fff")
    return first, last


def _number(text: str) -> int:
    return int(text, 16 if text[:2] in ("0x", "0X") else 10)


def _time(option: str, text: str) -> float:
    """In nanoseconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise UsageError(f"{option}: {text!r} is not a number of seconds")
    return seconds * 1e9
