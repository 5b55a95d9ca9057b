# SPDX-License-Identifier: BSD-3-Clause
"""`stats.Stats` for people, as tables, and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from vfio_user_bridge.terminal import Part, Table

from .histogram import Histogram
from .names import Names, region_name
from .records import Header
from .stats import SPAN, Stats
from .text import duration, title

PERCENTILES = (50, 90, 99)
_WIDTH = 40  # of the longest bar, in characters
_WORDS = 10  # lines on interrupts


def as_text(header: Header, stats: Stats, names: Names, top: int) -> Iterator[Part]:
    yield title(header)
    requests = sum(tally.count for tally in stats.tallies.values())
    if not requests:
        yield "no requests"
        return
    yield f"{requests:,} requests in {duration(stats.duration)}"
    accesses = stats.accesses
    if accesses.count:
        yield (
            f"{accesses.count:,} accesses, {stats.rate():,.0f} a second;"
            f" in the busiest {duration(SPAN)} {stats.busiest:,}"
        )
    yield ""
    yield _tallies(stats)
    if stats.places:
        yield ""
        yield _places(stats, names, top)
        if stats.overflowed:
            yield "there are more offsets or values: some accesses aren't in this table"
    if stats.latency:
        yield ""
        yield _latencies(stats)
    if accesses.count:
        yield ""
        yield "how long accesses took"
        yield from _bars(accesses)
    if stats.irqs:
        yield ""
        yield "interrupts"
        yield from (f"{count:8,}  {words}" for words, count in stats.irqs.most_common(_WORDS))
        if (more := len(stats.irqs) - _WORDS) > 0:
            yield f"          and {more} more"
    if stats.most_mapped:
        yield ""
        yield f"memory mapped for DMA, at most at a time: {stats.most_mapped:,} bytes"


def _tallies(stats: Stats) -> Table:
    headings = ("KIND", "REGION", "COUNT", "BYTES", "ERRORS")
    table = Table(headings, right=headings[2:])
    for (kind, region), tally in sorted(stats.tallies.items(), key=str):
        where = "" if region is None else region_name(region)
        size = "" if region is None else f"{tally.bytes:,}"
        table.rows.append((kind.name.lower(), where, f"{tally.count:,}", size, f"{tally.errors:,}"))
    return table


def _places(stats: Stats, names: Names, top: int) -> Table:
    headings = ("REGION", "OFFSET", "REGISTER", "READS", "WRITES", "VALUES")
    table = Table(headings, right=("OFFSET", *headings[3:]))
    for (region, offset), place in stats.hottest(top):
        table.rows.append(
            (
                region_name(region),
                f"{offset:#x}",
                names.name(region, offset, place.widest),
                f"{place.reads:,}",
                f"{place.writes:,}",
                f"{len(place.values):,}",
            )
        )
    return table


def _latencies(stats: Stats) -> Table:
    headings = ("LATENCY", *(f"P{percent}" for percent in PERCENTILES), "MAX")
    table = Table(headings, right=headings[1:])
    for kind, histogram in sorted(stats.latency.items()):
        times = (*map(histogram.percentile, PERCENTILES), histogram.highest)
        table.rows.append((kind.name.lower(), *map(duration, times)))
    return table


def _bars(histogram: Histogram) -> Iterator[str]:
    bars = list(histogram.bars())
    highest = max(count for *_, count in bars)
    for low, high, count in bars:
        bar = "█" * round(_WIDTH * count / highest)
        yield f"{duration(low):>8} to {duration(high):>7} {count:12,}  {bar}".rstrip()


def as_object(header: Header, stats: Stats, names: Names, top: int) -> dict[str, Any]:
    """Times are in nanoseconds, rates a second."""
    return {
        "device": header.device,
        "time": header.time,
        "duration": stats.duration,
        "rate": round(stats.rate(), 1),
        "busiest": {"span": SPAN, "accesses": stats.busiest},
        "counts": [
            {
                "kind": kind.name.lower(),
                "region": None if region is None else region_name(region),
                **asdict(tally),
            }
            for (kind, region), tally in stats.tallies.items()
        ],
        "places": [
            {
                "region": region_name(region),
                "offset": offset,
                "register": names.name(region, offset, place.widest) or None,
                "reads": place.reads,
                "writes": place.writes,
                "values": len(place.values),
            }
            for (region, offset), place in stats.hottest(top)
        ],
        "places_complete": not stats.overflowed,
        "latency": {
            kind.name.lower(): {
                **{f"p{percent}": histogram.percentile(percent) for percent in PERCENTILES},
                "max": histogram.highest,
            }
            for kind, histogram in stats.latency.items()
        },
        "irqs": dict(stats.irqs),
        "most_mapped": stats.most_mapped,
    }
