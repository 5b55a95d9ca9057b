# SPDX-License-Identifier: BSD-3-Clause
"""Which records each option lets pass, and what it can't be."""

from __future__ import annotations

from typing import Any

import pytest

from vfio_user_bridge.errors import UsageError
from vfio_user_bridge.trace.filters import parse
from vfio_user_bridge.trace.records import Client, End, Irqs, Map, Read, Record, Reset, Unmap, Write

MS = 1_000_000
RECORDS: dict[str, Record] = {
    "came": Client(0, 0, 0, True),
    "id": Read(1 * MS, 0, 0, 7, 0x00, 4, bytes(4)),
    "cc": Write(2 * MS, 0, 0, 0, 0x14, 4, bytes(4)),
    "sq": Write(3 * MS, 0, 0, 0, 0x1000, 4, bytes(4)),
    "cap": Read(4 * MS, 0, 22, 0, 0x00, 8, b""),
    "other": Read(5 * MS, 0, 0, 9, 0x14, 1, b"\0"),
    "irqs": Irqs(6 * MS, 0, 0, 2, 36, 0, 1, 1, b""),
    "map": Map(7 * MS, 0, 0, 0, 4096, 3, True),
    "unmap": Unmap(8 * MS, 0, 0, 0, 4096),
    "reset": Reset(9 * MS, 0, 0),
    "end": End(10 * MS, 0, 0, "stopped"),
}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, " ".join(RECORDS)),
        ({"commands": "read"}, "id cap other"),
        ({"commands": "write,irqs"}, "cc sq irqs"),
        ({"commands": "map,unmap,reset,client"}, "came map unmap reset"),
        ({"regions": ["bar0"]}, "cc sq cap"),
        ({"regions": ["0", "config"]}, "id cc sq cap"),
        ({"regions": ["9"]}, "other"),
        ({"regions": ["rom"]}, ""),
        ({"offsets": "0x14"}, "cc other"),
        ({"offsets": "20"}, "cc other"),
        ({"offsets": "020-0x014"}, "cc other"),
        ({"offsets": "0x3"}, "id cap"),
        ({"offsets": "0x7-0x14"}, "cc cap other"),
        ({"offsets": "0x1000-0x1fff"}, "sq"),
        ({"offsets": "0x14", "regions": ["bar0"], "commands": "write"}, "cc"),
        ({"since": "0.009"}, "reset end"),
        ({"until": "0.001"}, "came id"),
        ({"since": "2e-3", "until": "0.003"}, "cc sq"),
    ],
    ids=str,
)
def test_what_passes(options: dict[str, Any], expected: str) -> None:
    wanted = parse(**options)
    assert [name for name, record in RECORDS.items() if wanted.passes(record)] == expected.split()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"commands": "read,peek"},
            "--command: there is no 'peek'; there are: read, write, irqs, map, unmap,",
        ),
        ({"commands": ""}, "--command: there is no ''"),
        ({"commands": "end"}, "--command: there is no 'end'"),
        ({"regions": ["bar6"]}, "--region: there is no 'bar6'; there are: bar0, bar1"),
        ({"regions": ["-1"]}, "--region: there is no '-1'"),
        ({"offsets": "0x20-0x10"}, "--offset: '0x20-0x10' is not as 0x14, or as 0x1000-0x1fff"),
        ({"offsets": "ff"}, "--offset: 'ff' is not as 0x14"),
        ({"offsets": "1-"}, "--offset: '1-' is not as 0x14"),
        ({"since": "soon"}, "--since: 'soon' is not a number of seconds"),
        ({"until": "nan"}, "--until: 'nan' is not a number of seconds"),
    ],
    ids=str,
)
def test_what_cant_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(**options)
    assert str(error.value).startswith(says)
