# SPDX-License-Identifier: BSD-3-Clause
"""How many messages, and how long they took."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from vfio_user_bridge.counters import SHORTEST, Counters, bucket, percentile, upper_end
from vfio_user_bridge.protocol import Command

durations = st.integers(SHORTEST, 2**63 - 1)


@given(durations)
def test_a_bucket_is_at_most_an_eighth_wide(duration: int) -> None:
    end = upper_end(bucket(duration))
    assert duration < end <= max(duration * 9 / 8, duration + 2)


@given(durations, durations)
def test_longer_is_never_counted_before(one: int, other: int) -> None:
    assert (bucket(one) <= bucket(other)) or one > other


@given(st.lists(st.integers(SHORTEST, 10**12), min_size=1), st.floats(0.01, 1))
def test_percentiles(times: list[int], share: float) -> None:
    counters = Counters()
    row = counters.rows[Command.REGION_READ]
    for time in times:
        row[bucket(time)] += 1
    exact = sorted(times)[math.ceil(share * len(times)) - 1] / 1e9
    assert exact < percentile(row, share) <= exact * 9 / 8 + 2e-9


def test_of_nothing() -> None:
    assert math.isnan(percentile(Counters().rows[Command.DMA_MAP], 0.5))


def test_adding() -> None:
    first, second = Counters(), Counters()
    first.rows[Command.VERSION][3] += 1
    second.rows[Command.VERSION][3] += 1
    second.rows[Command.DMA_MAP][5] += 7
    first.refuse("one")
    second.refuse("other")
    both = first + second
    assert both.messages() == {Command.DMA_MAP: 7, Command.VERSION: 2}
    assert both.rows[Command.VERSION][3] == 2
    assert both.refused == 2
    assert both.trouble
    assert both.trouble.text == "other"
    assert (first + Counters()).trouble == first.trouble
    assert second.messages() == {Command.DMA_MAP: 7, Command.VERSION: 1}
