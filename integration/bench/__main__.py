# SPDX-License-Identifier: BSD-3-Clause
"""``python -m integration.bench``: see the package."""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import vfio_user_bridge
from integration.machine import MachineError, end_on_sigterm
from integration.progress import StepError

from . import machine
from .figures import Line
from .peers import choose
from .report import Report
from .rows import HERE, MACHINE, PLACES
from .setting import FULL, QUICK, Setting, compile_programs
from .table import HEAD, circumstances, row, sentences

ROWS = {**HERE, **MACHINE}
PACKAGE = Path(vfio_user_bridge.__file__).parent


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m integration.bench", description="What the bridge costs, beside a peer."
    )
    names = [f"{', '.join(rows)} ({place}: all of these)" for place, rows in PLACES.items()]
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(names)}")
    parser.add_argument("--peer", metavar="'COMMAND {socket}'", help="another vfio-user server")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="and a picture of the ratios")
    parser.add_argument("--quick", action="store_true", help="too few figures to mean anything")
    parser.add_argument(
        "--inside",
        type=Path,
        metavar="PROGRAMS",
        help="this is the test machine, where the C programs come compiled, in that folder",
    )
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS) - set(PLACES):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    if options.peer and "{socket}" not in options.peer:
        parser.error("--peer must say where the path of its socket goes, by {socket}")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot takes matplotlib: pip install -r requirements/plot.txt")
    chosen = [row for name in options.rows or PLACES for row in PLACES.get(name, [name])]
    options.rows = list(dict.fromkeys(chosen))
    return options


def _measured_here(options: argparse.Namespace, folder: Path) -> Iterator[Line]:
    setting = Setting(QUICK if options.quick else FULL, folder, choose(options.peer, folder))
    for chosen in options.rows:
        if options.inside or chosen in HERE:
            yield from ROWS[chosen](setting)


def _measured_inside(options: argparse.Namespace, folder: Path) -> Report:
    rows = [chosen for chosen in options.rows if chosen in MACHINE]
    if options.inside or not rows:
        return Report({}, [])
    return machine.measure(rows, ["--quick"] if options.quick else [], options.peer, folder)


def _run(options: argparse.Namespace, folder: Path) -> None:
    if options.inside:
        # Sockets go there, too, which the folder shared with the host may not have.
        shutil.copytree(options.inside, folder, dirs_exist_ok=True)
    else:
        compile_programs(folder)
        compileall.compile_dir(PACKAGE, quiet=1)  # as pip does, whatever the environment says
    # First, since it comes with a console: then the table is in one piece.
    inside = _measured_inside(options, folder)
    told = circumstances()
    lines = []
    print(HEAD, flush=True)
    for line in chain(_measured_here(options, folder), inside.lines):
        lines.append(line)
        print(row(line), flush=True)
    told["load, after"] = circumstances()["load"]
    told |= {f"{name}, test machine": value for name, value in inside.circumstances.items()}
    print("", *sentences(told), sep="\n")
    if options.json:
        Report(told, lines).save(options.json)
    if options.plot:
        from .plot import plot

        plot(lines, options.plot)


def main() -> None:
    options = _arguments()
    end_on_sigterm()
    with tempfile.TemporaryDirectory() as folder:
        try:
            _run(options, Path(folder))
        except (MachineError, StepError) as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
