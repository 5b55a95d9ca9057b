# SPDX-License-Identifier: BSD-3-Clause
"""What a run has found, as a file: JSON, which the test machine hands out and others may read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from .figures import Figures, Goal, Line, Ratio


@dataclass(frozen=True)
class Report:
    #: what figures depend on, by name
    circumstances: dict[str, str]
    lines: list[Line]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        told = json.loads(path.read_text())
        return cls(told["circumstances"], [_line(**line) for line in told["lines"]])


def _line(
    *,
    ours: dict[str, Any],
    theirs: dict[str, Any],
    ratio: dict[str, Any] | None,
    goal: dict[str, Any] | None,
    **plain: Any,
) -> Line:
    return Line(
        ours=Figures(**ours),
        theirs=Figures(**theirs),
        ratio=Ratio(**ratio) if ratio else None,
        goal=Goal(**goal) if goal else None,
        **plain,
    )
