# SPDX-License-Identifier: BSD-3-Clause
"""What the registers of a trace's device are called, and what their values mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from vfio_user_bridge.device import PciRegion

from .capabilities import capabilities
from .records import Header
from .register_file import Capability, Register, RegisterFile, load

SHIPPED = Path(__file__).with_name("registers")
_LABELS = {int(region): region.label for region in PciRegion}
_WIDEST = 8  # bytes, of a value whose fields are told


def region_name(index: int) -> str:
    """``bar0`` to ``bar5``, ``rom``, ``config``, ``vga``, or ``region9`` and so on."""
    return _LABELS.get(index, f"region{index}")


@dataclass(frozen=True, slots=True)
class Hit:
    """An access concerns *register*, whose name is *name*, and begins *inside* bytes after it."""

    name: str
    inside: int  # negative if the access begins before it
    register: Register


class Names:
    """Of a device whose trace has this *header*: from *files*, and from those of ours that match.

    :raise BridgeError: a file can't be read, or makes no sense
    """

    def __init__(self, header: Header, files: Iterable[Path] = ()) -> None:
        shipped = (load(path) for path in sorted(SHIPPED.glob("*.toml")))
        config = header.config
        chosen = [load(path) for path in files]
        chosen += [file for file in shipped if _matches(file, config)]
        self._registers: dict[int, list[Register]] = {}
        for file in chosen:
            for region, registers in file.regions.items():
                self._registers.setdefault(region, []).extend(_there(registers, config, 0))
            found = self._registers.setdefault(PciRegion.CONFIG, [])
            found += _in_capabilities(file.capabilities, config)
        # Drivers come back to the same few registers again and again.
        self.at = lru_cache(1 << 12)(self._at)

    def _at(self, region: int, offset: int, count: int) -> tuple[Hit, ...]:
        """The registers that such an access concerns, in order."""
        hits: list[Hit] = []
        at, end = offset, offset + max(count, 1)
        registers = self._registers.get(region, ())
        while at < end:
            hit = next((hit for register in registers if (hit := _hit(register, at))), None)
            if hit is None:
                starts = (register.offset for register in registers if register.offset > at)
                at = min(starts, default=end)
                continue
            if not hits or not hit.inside:  # else it is the capability around those before
                hits.append(replace(hit, inside=hit.inside + offset - at))
            at += hit.register.size - hit.inside
        return tuple(hits)

    def name(self, region: int, offset: int, count: int) -> str:
        """``CC``, ``CC+0x2``, ``COMMAND/STATUS``, ``VENDOR_ID…BIST``; empty if it has none."""
        hits = self.at(region, offset, count)
        names = [hit.name + (f"+{hit.inside:#x}" if hit.inside > 0 else "") for hit in hits]
        return "/".join(names) if len(names) <= 2 else f"{names[0]}…{names[-1]}"

    def where(self, region: int, offset: int, count: int) -> str:
        """The region and the register's name, or its offset if it has none: ``bar0 CC``."""
        place = self.name(region, offset, count) or f"{offset:#x}"
        return f"{region_name(region)} {place}"

    def fields(self, region: int, offset: int, data: bytes) -> dict[str, int | str]:
        """The fields in *data* read or written there, by name: their values, or what those mean."""
        found: dict[str, int | str] = {}
        if len(data) > _WIDEST:
            return found
        value = int.from_bytes(data, "little")
        for hit in self.at(region, offset, len(data)):
            shift = 8 * hit.inside
            shifted = value << shift if shift >= 0 else value >> -shift
            for field in hit.register.fields:
                if shift <= field.low and field.high < shift + 8 * len(data):
                    number = field.of(shifted)
                    found[field.name] = field.values.get(number, number)
        return found


def _hit(register: Register, at: int) -> Hit | None:
    """If *at* is inside *register*."""
    beyond = at - register.offset
    if beyond < 0:
        return None
    if register.repeat == 1:
        return Hit(register.name, beyond, register) if beyond < register.size else None
    number, inside = divmod(beyond, register.stride)
    if number < register.repeat and inside < register.size:
        return Hit(f"{register.name}[{number}]", inside, register)
    return None


def _matches(file: RegisterFile, config: bytes) -> bool:
    """An empty config space is that of no device, and so matches what any has."""
    ids = {
        "vendor": int.from_bytes(config[0:2], "little"),
        "device": int.from_bytes(config[2:4], "little"),
        "class": int.from_bytes(config[9:12], "little"),
    }
    return all(ids[name] == number for name, number in file.match.items())


def _there(registers: Iterable[Register], config: bytes, start: int) -> Iterator[Register]:
    """Those that there are, by *config*, at their offsets from *start*."""
    for register in registers:
        if register.when is None or register.when.holds(config, start):
            yield replace(register, offset=start + register.offset)


def _in_capabilities(known: Iterable[Capability], config: bytes) -> Iterator[Register]:
    """The registers of the capabilities that there are, and then each capability as a whole."""
    by_id = {(each.id, each.extended): each for each in known}
    found = [
        (by_id[number, extended], start)
        for number, extended, start in capabilities(config)
        if (number, extended) in by_id
    ]
    for capability, start in found:
        for register in _there(capability.registers, config, start):
            yield replace(register, name=f"{capability.name}.{register.name}")
    for capability, start in found:
        yield Register(capability.name, start, capability.size)
