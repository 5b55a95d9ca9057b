# SPDX-License-Identifier: BSD-3-Clause
"""``python -m integration.bench``: see the package."""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from . import access, idle, memory, scale, start
from .peers import choose
from .setting import FULL, QUICK, Setting, compile_programs
from .table import HEAD, circumstances, row, sentences

ROWS = {
    "access": access.measure,
    "idle": idle.measure,
    "start": start.measure,
    "memory": memory.measure,
    "scale": scale.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m integration.bench", description="What the bridge costs, beside a peer."
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)} (all)")
    parser.add_argument("--peer", metavar="'COMMAND {socket}'", help="another vfio-user server")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="and a picture of the ratios")
    parser.add_argument("--quick", action="store_true", help="too few figures to mean anything")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    if options.peer and "{socket}" not in options.peer:
        parser.error("--peer must say where the path of its socket goes, by {socket}")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot takes matplotlib: pip install -r requirements/plot.txt")

    told = circumstances()
    lines = []
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compile_programs(folder)
        effort = QUICK if options.quick else FULL
        setting = Setting(effort, folder, choose(options.peer, folder))
        for chosen in options.rows or ROWS:
            for line in ROWS[chosen](setting):
                lines.append(line)
                print(row(line), flush=True)
    told["load, after"] = circumstances()["load"]
    print("", *sentences(told), sep="\n")
    if options.json:
        figures = {"circumstances": told, "lines": [asdict(line) for line in lines]}
        options.json.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    if options.plot:
        from .plot import plot

        plot(lines, options.plot)


if __name__ == "__main__":
    main()
