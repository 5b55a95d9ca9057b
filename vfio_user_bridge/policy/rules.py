# SPDX-License-Identifier: BSD-3-Clause
"""Rules for a guest's accesses, as the operator writes them: ``serve --policy FILE``.

TOML, a table for each rule::

    [[rule]]
    device = "0000:01:10.1"   # as serve has it, * for any characters; absent: every device
    region = "config"         # bar0 to bar5, rom, config, vga
    offset = "0x4-0x5"        # the first and the last byte; or one byte; or "all"
    access = "write"          # read, write, or both, as if absent
    action = "force"          # deny, allow, force, or log
    value = 0x0               # force: what the bits of mask are, little-endian over the range
    mask = 0x400              # absent: all of them
    note = "why"              # for the log

A byte belongs to the first rule that has it; what no rule has is allowed. What a file can get wrong
without knowing the devices is found here, the rest by `device`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from vfio_user_bridge.device import REGIONS, PciRegion
from vfio_user_bridge.errors import UsageError
from vfio_user_bridge.sparse import without

#: what an access is called, and whether reads and writes are meant
ACCESSES = {"both": (True, True), "read": (True, False), "write": (False, True)}
KEYS = ("device", "region", "offset", "access", "action", "value", "mask", "note")

#: the end of a range that has all of a region
WHOLE = 1 << 64
#: bytes that a forced register may have
WIDEST = 8
#: bytes that a file may have
LARGEST = 1 << 20

_NUMBER = r"(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,19})"
_RANGE = re.compile(rf"{_NUMBER}(?:-{_NUMBER})?", re.ASCII)


class Action(StrEnum):
    DENY = "deny"
    ALLOW = "allow"
    FORCE = "force"
    LOG = "log"


@dataclass(frozen=True, slots=True)
class Rule:
    """*action* for what is read or written from *start* to before *end* of *region*.

    *value* and *mask* have a byte for each of the range, if that is forced, else none.
    """

    where: str  # for errors: the file and the rule's number in it
    number: int
    region: PciRegion
    start: int
    end: int
    action: Action
    device: str = "*"
    reads: bool = True
    writes: bool = True
    value: bytes = b""
    mask: bytes = b""
    note: str = ""

    def forced(self, offset: int, data: bytes | bytearray) -> bytes:
        """*data*, at *offset* within the range, with the bits that are forced."""
        at = offset - self.start
        bits = zip(data, self.value[at:], self.mask[at:], strict=False)
        return bytes(byte & ~mask | value for byte, value, mask in bits)


class Span(NamedTuple):
    """What *rule* has of a region: from *start* to before *end*."""

    start: int
    end: int
    rule: Rule


def spans(rules: Iterable[Rule], *, writes: bool) -> list[Span]:
    """What each of *rules*, all for one region, has of its reads or writes.

    Disjoint, in the order of offsets.
    """
    rules = [rule for rule in rules if (rule.writes if writes else rule.reads)]
    edges = sorted({edge for rule in rules for edge in (rule.start, rule.end)})
    found: list[Span] = []
    for start, end in pairwise(edges):
        rule = next((rule for rule in rules if rule.start <= start and end <= rule.end), None)
        if rule and found and found[-1].rule is rule and found[-1].end == start:
            found[-1] = found[-1]._replace(end=end)
        elif rule:
            found.append(Span(start, end, rule))
    return found


def read(path: Path) -> list[Rule]:
    """The rules of a file, in its order.

    :raise UsageError: it can't be read, or a rule can't mean anything
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UsageError(f"{path}: more than {LARGEST} bytes are no policy")
        document = tomllib.loads(content.decode())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} isn't TOML: {error}") from None
    tables = document.pop("rule", None)
    for key in document:
        raise UsageError(f"{path}: {key!r} is no key of a policy: it has [[rule]] tables alone")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{path}: no rules: each is a table that begins with [[rule]]")
    return [_Table(path, number, table).rule() for number, table in enumerate(tables, 1)]


def check_served(rules: Sequence[Rule], names: Sequence[str]) -> None:
    """:raise UsageError: a rule is for none of the devices of these names, or never counts"""
    for count, rule in enumerate(rules):
        devices = [name for name in names if applies(rule, name)]
        if not devices:
            raise UsageError(
                f"{rule.where}, device: no {rule.device!r} is served; there are: {', '.join(names)}"
            )
        before = [other for other in rules[:count] if other.region == rule.region]
        if all(_is_had(rule, [o for o in before if applies(o, name)]) for name in devices):
            raise UsageError(
                f"{rule.where}, offset: rules before have all of it: the first that has a byte"
                " counts, so put exceptions first"
            )


def applies(rule: Rule, name: str) -> bool:
    return fnmatchcase(name, rule.device)


def _is_had(rule: Rule, before: Sequence[Rule]) -> bool:
    """Whether those *before* it have all that *rule* is about."""
    whole = [(rule.start, rule.end - rule.start)]
    reads = [(other.start, other.end) for other in before if other.reads]
    writes = [(other.start, other.end) for other in before if other.writes]
    left_to_read = rule.reads and without(whole, reads, 1)
    left_to_write = rule.writes and without(whole, writes, 1)
    return not left_to_read and not left_to_write


class _Table:
    """A rule as TOML has it."""

    def __init__(self, path: Path, number: int, table: Mapping[str, Any]) -> None:
        self._where = f"{path}: rule {number}"
        self._number = number
        self._table = table
        for key in table:
            if key not in KEYS:
                raise self._error(repr(key), f"there is no such key; there are: {', '.join(KEYS)}")

    def _error(self, key: str, what: str) -> UsageError:
        return UsageError(f"{self._where}, {key}: {what}")

    def rule(self) -> Rule:
        """:raise UsageError: a key is missing, or can't have its value"""
        start, end = self._range()
        reads, writes = ACCESSES[self._choice("access", ACCESSES, "both")]
        action = Action(self._choice("action", list(Action)))
        value, mask = self._bits(action, end - start)
        return Rule(
            where=self._where,
            number=self._number,
            device=self._text("device", "*"),
            region=REGIONS[self._choice("region", REGIONS)],
            start=start,
            end=end,
            reads=reads,
            writes=writes,
            action=action,
            value=value,
            mask=mask,
            note=self._text("note", ""),
        )

    def _text(self, key: str, default: str | None = None) -> str:
        text = self._table.get(key, default)
        if not isinstance(text, str) or not text.isprintable():
            raise self._error(key, "it must be given" if text is None else "it is a line of text")
        return text

    def _choice(self, key: str, known: Iterable[str], default: str | None = None) -> str:
        text = self._text(key, default)
        if text not in known:
            raise self._error(key, f"there is no {text!r}; there are: {', '.join(known)}")
        return text

    def _range(self) -> tuple[int, int]:
        given = self._table.get("offset")
        text = hex(given) if type(given) is int else self._text("offset")
        if text == "all":
            return 0, WHOLE
        found = _RANGE.fullmatch(text)
        if not found:
            raise self._error("offset", f'{text!r} is neither like 0x4 or 0x4-0x7 nor "all"')
        first = _number(found[1])
        last = _number(found[2]) if found[2] else first
        if last < first:
            raise self._error("offset", f"{text} ends before it begins")
        return first, last + 1

    def _bits(self, action: Action, size: int) -> tuple[bytes, bytes]:
        for key in ("value", "mask"):
            if action != Action.FORCE and key in self._table:
                raise self._error(key, f"only {Action.FORCE} has one, not {action}")
        if action != Action.FORCE:
            return b"", b""
        if size > WIDEST:
            raise self._error("offset", f"a forced register has {WIDEST} bytes at most")
        ones = (1 << 8 * size) - 1
        value, mask = self._register("value", ones), self._register("mask", ones, ones)
        if value & ~mask:
            raise self._error("value", f"{value:#x} has bits that aren't in mask, {mask:#x}")
        if not mask:
            raise self._error("mask", "without a bit, there is nothing to force")
        return value.to_bytes(size, "little"), mask.to_bytes(size, "little")

    def _register(self, key: str, most: int, default: int | None = None) -> int:
        number = self._table.get(key, default)
        if number is None:
            raise self._error(key, "it must be given, as the bits are forced to it")
        if type(number) is not int or not 0 <= number <= most:
            raise self._error(key, f"it is a number from 0 to {most:#x}")
        return number


def _number(text: str) -> int:
    return int(text, 16 if text[:2] in ("0x", "0X") else 10)
