# SPDX-License-Identifier: BSD-3-Clause
"""Register files: what a device's registers are called, and their fields (docs/users/registers.md).

They are TOML: a table for each region, with a table for each register in it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfio_user_bridge.device import REGIONS
from vfio_user_bridge.errors import BridgeError

_ID_BITS = {"vendor": 16, "device": 16, "class": 24}


@dataclass(frozen=True, slots=True)
class Field:
    """Bits *low* to *high* of a register; some of its *values* may have names."""

    name: str
    low: int
    high: int
    values: Mapping[int, str]

    def of(self, value: int) -> int:
        """The field in the register's *value*."""
        return value >> self.low & (1 << self.high - self.low + 1) - 1


@dataclass(frozen=True, slots=True)
class Condition:
    """In config space, *field* of the register of *size* bytes at *offset* has this *value*."""

    offset: int
    size: int
    field: Field
    value: int

    def holds(self, config: bytes, start: int) -> bool:
        """Offsets count from *start*."""
        at = start + self.offset
        return self.field.of(int.from_bytes(config[at : at + self.size], "little")) == self.value


@dataclass(frozen=True, slots=True)
class Register:
    """*size* bytes at *offset*; *repeat* of them, *stride* bytes from one to the next."""

    name: str
    offset: int
    size: int = 4
    fields: tuple[Field, ...] = ()
    repeat: int = 1
    stride: int = 0
    when: Condition | None = None  # it is there


@dataclass(frozen=True, slots=True)
class Capability:
    """What config space has where its list has capability *id*; offsets are from its start."""

    name: str
    id: int
    extended: bool
    size: int
    registers: tuple[Register, ...]


@dataclass(frozen=True, slots=True)
class RegisterFile:
    """*match* has those of vendor, device and class that a device must have."""

    match: Mapping[str, int]
    regions: Mapping[int, tuple[Register, ...]]
    capabilities: tuple[Capability, ...]


def load(path: Path) -> RegisterFile:
    """:raise BridgeError: it can't be read, or makes no sense"""
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise BridgeError(f"can't read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BridgeError(f"{path}: no TOML: {error}") from None
    whole = _Table(path, (), content)
    match = whole.table("match")
    ids = {
        name: match.number(name, 0, (1 << bits) - 1)
        for name, bits in _ID_BITS.items()
        if name in match.content
    }
    match.end()
    capabilities = [_capability(table) for table in whole.table("capability").tables()]
    regions = {int(r): tuple(_registers(whole.table(name))) for name, r in REGIONS.items()}
    whole.end()
    return RegisterFile(ids, regions, tuple(capabilities))


class _Table:
    """A TOML table, from which each key is taken once; *keys* lead to it."""

    def __init__(self, path: Path, keys: tuple[str, ...], content: object) -> None:
        self.path = path
        self.keys = keys
        if not isinstance(content, dict):
            raise self.error("", f"must be a table, and is {_shown(content)}")
        self.content: dict[str, Any] = dict(content)

    @property
    def name(self) -> str:
        return self.keys[-1]

    def error(self, key: str, problem: str) -> BridgeError:
        dotted = ".".join(filter(None, (*self.keys, key)))
        return BridgeError(f"{self.path}: {dotted}: {problem}")

    def number(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self.content.pop(key, default)
        if type(value) is int and low <= value <= high:
            return value
        found = "is missing" if value is None else f"is {_shown(value)}"
        raise self.error(key, f"must be a whole number from {low} to {high:#x}, and {found}")

    def boolean(self, key: str) -> bool:
        value = self.content.pop(key, False)
        if isinstance(value, bool):
            return value
        raise self.error(key, f"must be true or false, and is {_shown(value)}")

    def table(self, key: str) -> _Table:
        """Empty if there is none."""
        if not key.isprintable():
            raise self.error("", f"{key!r} is no name")
        return _Table(self.path, (*self.keys, key), self.content.pop(key, {}))

    def tables(self) -> Iterator[_Table]:
        """All that is left, each of which must be one."""
        for key in list(self.content):
            yield self.table(key)

    def end(self) -> None:
        for key in self.content:
            raise self.error(key, "there is no such key")


def _shown(value: object) -> str:
    """As TOML has it, about; not all of what is long, nor a number that Python won't write."""
    try:
        text = repr(value)
    except ValueError:  # sys.get_int_max_str_digits()
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:79]}…"


def _capability(table: _Table) -> Capability:
    extended = table.boolean("extended")
    number = table.number("id", 0, 0xFFFF if extended else 0xFF)
    size = table.number("size", 0, 0x1000, 0)
    registers = tuple(_registers(table))
    size = max(size, *(register.offset + register.size for register in registers), 4)
    return Capability(table.name, number, extended, size, registers)


def _registers(region: _Table) -> list[Register]:
    registers: list[Register] = []
    for table in region.tables():
        offset = table.number("offset", 0, (1 << 63) - 1)
        size = table.number("size", 1, 8, 4)
        repeat = table.number("repeat", 1, 1 << 20, 1)
        stride = table.number("stride", size, 1 << 30, size)
        fields = tuple(_fields(table, size * 8))
        when = _condition(table, registers)
        table.end()
        registers.append(Register(table.name, offset, size, fields, repeat, stride, when))
    return registers


def _fields(register: _Table, width: int) -> Iterator[Field]:
    fields, values = register.table("fields"), register.table("values")
    for name, bits in fields.content.items():
        found = re.fullmatch(r"(\d{1,2})(?::(\d{1,2}))?", str(bits), re.ASCII)
        high, low = (int(found[1]), int(found[2] or found[1])) if found else (0, 1)
        if not low <= high < width:
            problem = f'must be a bit or "HIGH:LOW", below {width}, and is {_shown(bits)}'
            raise fields.error(name, problem)
        named = dict(_named(values.table(name)))
        yield Field(name, low, high, named)
    values.end()


def _named(values: _Table) -> Iterator[tuple[int, str]]:
    for key, text in values.content.items():
        try:
            number = int(key, 0)
        except ValueError:
            raise values.error(key, "must be a number") from None
        if not isinstance(text, str) or not text.isprintable():
            raise values.error(key, f"must be a name, and is {_shown(text)}")
        yield number, text


def _condition(register: _Table, above: Iterable[Register]) -> Condition | None:
    """``when = "FLAGS.64BIT = 1"``, where FLAGS is a register *above*."""
    text = register.content.pop("when", None)
    if text is None:
        return None
    found = re.fullmatch(r"(\w+)\.(\w+) *= *(\d{1,9})", str(text), re.ASCII)
    for other in above if found else ():
        for field in other.fields:
            if found and found.groups()[:2] == (other.name, field.name):
                return Condition(other.offset, other.size, field, int(found[3]))
    raise register.error(
        "when", f'must be as "FLAGS.64BIT = 1", of one above, and is {_shown(text)}'
    )
