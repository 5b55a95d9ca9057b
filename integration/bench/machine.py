# SPDX-License-Identifier: BSD-3-Clause
"""The test machine's part: rows that need real devices are measured there, by this same program."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from integration import library, machine
from integration.devices import standard

from . import setting
from .report import Report

TIMEOUT = 3600.0
RESULTS = Path("/results")  # what the machine calls our folder
PROGRAMS, PEER, REPORT = "programs", "peer", "report.json"


def measure(rows: Sequence[str], options: Sequence[str], peer: str | None, folder: Path) -> Report:
    """Boot the machine once and have it measure *rows*; its console goes to stderr meanwhile.

    :param options: further options for the program in the machine
    :param peer: another server's command; its program is taken along with the libraries it loads
    :param folder: where the compiled programs are; for what the machine is given and gives back,
        and for its disks
    :raise MachineError: it didn't measure them
    :raise StepError: the machine can't be built
    """
    results = folder / "results"
    (results / PROGRAMS).mkdir(parents=True)
    for name in setting.PROGRAMS:  # there is no compiler in there
        shutil.copy(folder / name, results / PROGRAMS)
    command = ["python3", "-B", "-m", "integration.bench", *rows, *options]
    command += ["--inside", str(RESULTS / PROGRAMS), "--json", str(RESULTS / REPORT)]
    if peer:
        command += ["--peer", carried(peer, results / PEER, RESULTS / PEER)]
    with contextlib.redirect_stdout(sys.stderr):
        status = machine.run(
            command, results, devices=standard(folder), timeout=TIMEOUT, kernel=True
        )
    if status:
        raise machine.MachineError(f"in the test machine, {shlex.join(command)} failed: see above")
    return Report.load(results / REPORT)


def carried(command: str, folder: Path, there: Path) -> str:
    """Put a command's program into *folder*, with what it loads; gives the command to run it there.

    :param there: what the machine calls *folder*
    :raise MachineError: there is no such program
    """
    name, *words = shlex.split(command)
    found = shutil.which(name)
    if not found:
        raise machine.MachineError(f"there is no program {name}")
    return shlex.join([str(library.program(Path(found), folder, there)), *words])
