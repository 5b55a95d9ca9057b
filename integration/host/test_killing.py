# SPDX-License-Identifier: BSD-3-Clause
"""A short `integration.killing`: a client that checks every reply, and its bridge replaced."""

from __future__ import annotations

import os

from integration.killing import killing

TIMES = 40


def test_killed_and_upgraded_at_random() -> None:
    seed = int(os.environ.get("SEED") or int.from_bytes(os.urandom(4)))
    print(f"seed {seed}")
    print(killing(TIMES, seed))
