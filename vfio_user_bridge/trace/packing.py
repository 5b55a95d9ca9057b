# SPDX-License-Identifier: BSD-3-Clause
"""As much of MessagePack as a trace takes (its specification is in msgpack/spec.md).

It is here so that recording, which is part of serving, takes no package. Sizes have one width each:
what this makes is for `trace.reader`, and any other reader of MessagePack, to understand.
"""

from __future__ import annotations

from struct import Struct

_UINT64, _INT64 = Struct(">BQ"), Struct(">Bq")
_SIZED = Struct(">BI")  # str 32, bin 32, array 32

#: the markers of the specification's "Formats" that `writer` puts itself
UINT8, UINT32, UINT64, INT16, BIN32, FIXARRAY = 0xCC, 0xCE, 0xCF, 0xD1, 0xC6, 0x90
_INT64_MARK, _STR32, _ARRAY32, _FIXMAP = 0xD3, 0xDB, 0xDD, 0x80
_MOST = 15  # elements of a fixarray or fixmap

Packable = int | bool | str | bytes | list["Packable"] | dict[str, "Packable"]


def packed(value: Packable) -> bytes:
    """:raise struct.error: an integer that doesn't fit into 64 bits"""
    match value:
        case bool():
            return b"\xc3" if value else b"\xc2"
        case int() if 0 <= value < 0x80:
            return bytes((value,))
        case int():
            return _INT64.pack(_INT64_MARK, value) if value < 0 else _UINT64.pack(UINT64, value)
        case str():
            text = value.encode()
            return _SIZED.pack(_STR32, len(text)) + text
        case bytes():
            return _SIZED.pack(BIN32, len(value)) + value
        case list():
            few = len(value) <= _MOST
            size = len(value)
            head = bytes((FIXARRAY | size,)) if few else _SIZED.pack(_ARRAY32, size)
            return head + b"".join(map(packed, value))
        case dict():
            assert len(value) <= _MOST
            entries = (packed(name) + packed(entry) for name, entry in value.items())
            return bytes((_FIXMAP | len(value),)) + b"".join(entries)
