# SPDX-License-Identifier: BSD-3-Clause
"""A Device whose guest keeps to the operator's rules (`rules`).

What is denied reads as all ones, and writes to it vanish: so a PCI device answers where it has
nothing. The device doesn't see such bytes; of an access that has others too, it gets each run of
those as one of its own. Of what a client could map, the pages that rules are about are trapped.
"""

from __future__ import annotations

import logging
import mmap
import time
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from zlib import crc32

from vfio_user_bridge.device import Cells, Device, Keep, RegionFlags, Take
from vfio_user_bridge.errors import UsageError
from vfio_user_bridge.messages import RegionInfo
from vfio_user_bridge.protocol import Buffer
from vfio_user_bridge.sparse import mappable_areas, with_areas, without
from vfio_user_bridge.wrapped import Wrapped

from .rules import WHOLE, WIDEST, Action, Rule, Span, applies, spans

log = logging.getLogger(__name__)

#: lines that a rule's action "log" may write in a second
LINES = 10

_DONE = {Action.DENY: "denied", Action.FORCE: "forced", Action.LOG: "logged"}


def policed(device: Device, rules: Iterable[Rule]) -> Device:
    """*device* under those of *rules* that are for it: itself, if none is.

    :raise UsageError: it hasn't what a rule is about
    """
    ours = [rule for rule in rules if applies(rule, device.name)]
    return PolicedDevice(device, ours) if ours else device


class PolicedDevice(Wrapped):
    """*inner* under all of *rules*.

    :raise UsageError: *inner* hasn't what a rule is about
    """

    def __init__(self, inner: Device, rules: Sequence[Rule]) -> None:
        super().__init__(inner)
        infos = [inner.region_info(index) for index in range(inner.info.num_regions)]
        for rule in rules:
            _check_region(rule, infos, inner.name)
        self._digest = crc32(repr(rules).encode())
        self._count_anew = False  # others were counted where we do
        self._tallies = {
            rule.number: _Tally(inner.name, rule) for rule in rules if rule.action != Action.ALLOW
        }
        reads = [_ruled(rules, info.index, writes=False) for info in infos]
        writes = [_ruled(rules, info.index, writes=True) for info in infos]
        self._reads = [_Spans(found) if found else None for found in reads]
        self._writes = [_Spans(found) if found else None for found in writes]
        self._infos = list(map(_trapping, infos, reads, writes))
        mapped = any(info.flags & RegionFlags.MMAP for info in self._infos)
        if mapped and any(rule.action in (Action.DENY, Action.FORCE) for rule in rules):
            log.info(
                "%s: the policy holds for the guest, not for a client that was taken over: that has"
                " the file that it maps BARs from; --bar-mmap off prevents it",
                inner.name,
            )

    @property
    def hits(self) -> list[tuple[int, str, int]]:
        """An access that has bytes of a rule on both sides of another's counts twice."""
        return [
            (tally.rule.number, tally.rule.note, tally.hits) for tally in self._tallies.values()
        ]

    def cells(self, make: Cells) -> None:
        hits = make(len(self._tallies))
        for at, tally in enumerate(self._tallies.values()):
            tally.move(hits[at : at + 1])
        self.inner.cells(make)

    def save_layers(self, keep: Keep) -> dict[str, Any]:
        tallies = [[tally.hits, tally.earlier] for tally in self._tallies.values()]
        return {**self.inner.save_layers(keep), "policy": [self._digest, tallies]}

    def restore_layers(self, saved: Mapping[str, Any], take: Take) -> None:
        self.inner.restore_layers(saved, take)
        digest, tallies = saved.get("policy", (None, ()))
        if digest != self._digest:
            log.warning(
                "%s: its policy has changed: what a client has mapped under the old one stays"
                " mapped until it is gone; the rules count from 0",
                self.name,
            )
            self._count_anew = True
            return
        for tally, (hits, earlier) in zip(self._tallies.values(), tallies, strict=True):
            tally.go_on(hits, earlier)

    def succeed(self) -> None:
        if self._count_anew:
            for tally in self._tallies.values():
                tally.count_anew()
        self.inner.succeed()

    def region_info(self, index: int) -> RegionInfo:
        return self._infos[index]

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        ruled = self._reads[index]
        found = ruled.within(offset, offset + count) if ruled else ()
        if not found:
            return self.inner.region_read(index, offset, count)
        data = bytearray(b"\xff" * count)
        for start, end in _allowed(offset, offset + count, found):
            piece = self.inner.region_read(index, start, end - start)
            data[start - offset : end - offset] = piece
            if len(piece) < end - start:
                del data[start - offset + len(piece) :]
                break
        for start, end, rule in found:
            part = slice(start - offset, end - offset)
            if rule.action == Action.FORCE:
                data[part] = rule.forced(start, data[part])
            told = data[part] if rule.action == Action.LOG else b""
            self._tallies[rule.number].count("read", start, end - start, told)
        return bytes(data)

    def region_write(self, index: int, offset: int, data: Buffer) -> None:
        ruled = self._writes[index]
        found = ruled.within(offset, offset + len(data)) if ruled else ()
        if not found:
            self.inner.region_write(index, offset, data)
            return
        changed = bytearray(data)
        for start, end, rule in found:
            part = slice(start - offset, end - offset)
            self._tallies[rule.number].count("write", start, end - start, changed[part])
            if rule.action == Action.FORCE:
                changed[part] = rule.forced(start, changed[part])
        for start, end in _allowed(offset, offset + len(data), found):
            self.inner.region_write(index, start, bytes(changed[start - offset : end - offset]))

    def quiesce(self, *, reset: bool) -> None:
        told = [text for tally in self._tallies.values() if (text := tally.client_gone())]
        if told:
            log.info("%s: policy, for this client: %s", self.name, ", ".join(told))
        self.inner.quiesce(reset=reset)


def _check_region(rule: Rule, infos: Sequence[RegionInfo], name: str) -> None:
    region, size = rule.region, infos[rule.region].size if rule.region < len(infos) else 0
    if not size:
        raise UsageError(f"{rule.where}, region: {name} has no {region.label}")
    if rule.end > size and rule.end != WHOLE:
        raise UsageError(f"{rule.where}, offset: {region.label} of {name} ends at {size - 1:#x}")


def _ruled(rules: Iterable[Rule], index: int, *, writes: bool) -> list[Span]:
    """What there is to do something about, in the reads or writes of region *index*."""
    found = spans((rule for rule in rules if rule.region == index), writes=writes)
    return [span for span in found if span.rule.action != Action.ALLOW]


def _trapping(info: RegionInfo, reads: Sequence[Span], writes: Sequence[Span]) -> RegionInfo:
    """*info* of a region with these: a client may map the pages that have nothing of them."""
    trapped = [(span.start, min(span.end, info.size)) for span in (*reads, *writes)]
    if not trapped or not info.flags & RegionFlags.MMAP:
        return info
    return with_areas(info, without(mappable_areas(info), trapped, mmap.PAGESIZE))


def _allowed(start: int, end: int, found: Iterable[Span]) -> Iterator[tuple[int, int]]:
    """What nobody denies from *start* to before *end*."""
    for span in found:
        if span.rule.action == Action.DENY:
            if start < span.start:
                yield start, span.start
            start = span.end
    if start < end:
        yield start, end


class _Spans:
    """Spans of one region, disjoint and in order, to be found by offset."""

    def __init__(self, found: Sequence[Span]) -> None:
        self._spans = found
        self._ends = [span.end for span in found]

    def within(self, start: int, end: int) -> list[Span]:
        """The parts of spans that lie from *start* to before *end*."""
        found = []
        for at in range(bisect_right(self._ends, start), len(self._spans)):
            first, last, rule = self._spans[at]
            if first >= end:
                break
            found.append(Span(max(first, start), min(last, end), rule))
        return found


class _Tally:
    """What one rule is about, counted; and told in bounds, for a guest can go on for ever."""

    def __init__(self, name: str, rule: Rule) -> None:
        self.rule = rule
        self.earlier = 0  # hits, by other clients
        self._hits: memoryview | array[int] = array("Q", [0])
        self._device = name
        self._second = 0.0  # when the one began that lines are counted in
        self._lines = 0
        self._untold = 0

    @property
    def hits(self) -> int:
        return self._hits[0]

    def move(self, cell: memoryview) -> None:
        """Count in *cell*: on from what a predecessor has there, if that is more."""
        hits, self._hits = self.hits, cell
        self.go_on(hits, self.earlier)

    def go_on(self, hits: int, earlier: int) -> None:
        """From *hits*, if the cell hasn't more since then, and *earlier*."""
        if hits > self.hits:  # else it may be a predecessor's yet, which counts there
            self._hits[0] = hits
        self.earlier = earlier

    def count_anew(self) -> None:
        self._hits[0] = self.earlier = 0

    def count(self, verb: str, offset: int, size: int, data: Buffer) -> None:
        """An access by the rule's client, with as much of *data* as is known."""
        self._hits[0] += 1
        if not self._worth_a_line():
            return
        rule = self.rule
        note = f" ({rule.note})" if rule.note else ""
        what = f"{verb} of {size} bytes at {offset:#x} of {rule.region.label}"
        if 0 < len(data) <= WIDEST:
            what += f": {int.from_bytes(data, 'little'):#0{2 * len(data) + 2}x}"
        if self._untold:
            what += f"; {self._untold} more went untold"
            self._untold = 0
        level = logging.WARNING if rule.action == Action.DENY else logging.INFO
        done = _DONE[rule.action]
        log.log(level, "%s: policy rule %d%s: %s %s", self._device, rule.number, note, done, what)

    def _worth_a_line(self) -> bool:
        match self.rule.action:
            case Action.DENY:
                return self.hits == self.earlier + 1
            case Action.FORCE:
                return False
        now = time.monotonic()
        if now - self._second >= 1:
            self._second, self._lines = now, 0
        self._lines += 1
        if self._lines > LINES:
            self._untold += 1
            return False
        return True

    def client_gone(self) -> str:
        """How often it was about the client that goes, for the log; empty if it wasn't."""
        hits, self.earlier = self.hits - self.earlier, self.hits
        self._untold = 0
        return f"rule {self.rule.number} {_DONE[self.rule.action]} {hits}" if hits else ""
