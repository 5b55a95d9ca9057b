# SPDX-License-Identifier: BSD-3-Clause
"""A short `make soak` of the model: it is flat."""

from __future__ import annotations

from integration.soak import MODEL, soak


def test_flat() -> None:
    soaked = soak(MODEL, 50)
    print(soaked)
    assert soaked.flat
