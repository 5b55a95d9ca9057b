# SPDX-License-Identifier: BSD-3-Clause
"""What an input of the targets `transport` and `session` says: pieces of a stream, with files.

Any bytes are such an input, so that whatever is made of a good one is one too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct

#: the number of files, and AT_ONCE or not; the number of bytes after the files' own numbers
HEAD = Struct("<BH")
AT_ONCE = 0x80
MOST_FILES = AT_ONCE - 1
#: bytes; some tens of pieces fit into a socket's buffer
LONGEST = 4096


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes that are sent at once, with *files*, which are indexes of `files.opened`."""

    data: bytes
    files: tuple[int, ...] = ()
    #: whether the next piece is sent before this one is read
    at_once: bool = False


def pack(pieces: Iterable[Piece]) -> bytes:
    return b"".join(
        HEAD.pack(len(piece.files) | AT_ONCE * piece.at_once, len(piece.data))
        + bytes(piece.files)
        + piece.data
        for piece in pieces
    )


def unpack(data: bytes) -> list[Piece]:
    """The pieces of any bytes: the last may be cut, and too few for a head are nothing."""
    pieces, at = [], 0
    while at + HEAD.size <= len(data):
        count, length = HEAD.unpack_from(data, at)
        files = at + HEAD.size
        begin = files + (count & MOST_FILES)
        at = begin + min(length, LONGEST)
        pieces.append(Piece(data[begin:at], tuple(data[files:begin]), bool(count & AT_ONCE)))
    return pieces
