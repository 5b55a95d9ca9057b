# SPDX-License-Identifier: BSD-3-Clause
"""The table of `make fidelity`: one row a device, one column a check, direct against bridged.

A test that compares belongs to a cell by its marker, `@pytest.mark.fidelity(device, check)`. The
device is a name, or a BDF of the test machine. A cell is `same` if all its tests passed, `DIFFERS`
if one did not, `-` if nobody looked. The hooks below are pytest's; conftest.py imports them.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from integration import devices

MARKER = "fidelity"
SAME, DIFFERS, UNSEEN = "same", "DIFFERS", "-"

#: The rows, in this order; others follow as their tests come.
NAMES = {
    devices.EDU: "edu",
    devices.EDU_ALONE: "edu",
    devices.EDU_PAIR[0]: "edu pair",
    devices.EDU_PAIR[1]: "edu pair",
    devices.EDU_PORT_PAIR[0]: "edu pair, port",
    devices.EDU_PORT_PAIR[1]: "edu pair, port",
    devices.NVME: "nvme",
    devices.NVME_PORT: "nvme, port",
    devices.E1000E: "e1000e",
    devices.E1000: "e1000",
    devices.RTL8139: "rtl8139",
    devices.IGB: "igb",
    devices.IGB_VF: "igb vf",
    devices.VIRTIO_BLK: "virtio-blk",
    devices.XHCI: "xhci",
    devices.XHCI_MSI: "xhci msi",
}

Cells = dict[tuple[str, str], str]


def render(cells: Cells) -> list[str]:
    """Return the table as lines of Markdown, so that the documentation can have it as it is."""
    checks = list(dict.fromkeys(check for _, check in cells))
    seen = dict.fromkeys(device for device, _ in cells)
    names = [name for name in dict.fromkeys(NAMES.values()) if name in seen]
    names += [name for name in seen if name not in names]
    rows = [["device", *checks]]
    rows += [[name, *(cells.get((name, check), UNSEEN) for check in checks)] for name in names]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in rows
    ]


def collect(reports: Iterable[pytest.TestReport]) -> Cells:
    """Return the cells that tests fill: one that differs stays so, whatever other tests say."""
    cells: Cells = {}
    for report in reports:
        for key, value in report.user_properties:
            if key == MARKER and isinstance(value, tuple):
                passed = report.passed and cells.get(value, SAME) == SAME
                cells[value] = SAME if passed else DIFFERS
    return cells


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each report carry the cells that its test belongs to."""
    for item in items:
        for mark in item.iter_markers(MARKER):
            device, check = mark.args
            item.user_properties.append((MARKER, (NAMES.get(device, device), check)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, if any test that ran belongs to it."""
    reports = [
        report
        for outcome in terminalreporter.stats.values()
        for report in outcome
        if isinstance(report, pytest.TestReport) and report.when and not _only_framing(report)
    ]
    cells = collect(sorted(reports, key=lambda report: report.start))
    if cells:
        terminalreporter.section("direct against bridged")
        for line in render(cells):
            terminalreporter.line(line)


def _only_framing(report: pytest.TestReport) -> bool:
    """Whether this is a setup or a teardown in which nothing went wrong."""
    return report.passed and report.when != "call"
