# SPDX-License-Identifier: BSD-3-Clause
"""How inputs of whole messages are changed: not by bytes only, but by messages too."""

from __future__ import annotations

from random import Random

from integration.fuzz.files import EVENTFD, RAM
from integration.fuzz.pieces import Piece, pack, unpack
from tests.request_sequences import KINDS
from tests.wire import message

FILES = {"memory": RAM, "eventfd": EVENTFD}
#: messages that are said again
MOST_AGAIN = 8


def mutate(data: bytes, seed: int) -> bytes:
    """*data* with a message more, a message less, or some messages once more elsewhere."""
    random = Random(seed)  # to be the same each time
    pieces = unpack(data)
    at = random.randrange(len(pieces) + 1)
    match random.randrange(3):
        case 0:
            pieces.insert(at, any_request(random))
        case 1:
            del pieces[at : at + 1]
        case _:
            begin = random.randrange(len(pieces) + 1)
            pieces[at:at] = pieces[begin : begin + random.randint(1, MOST_AGAIN)]
    return pack(pieces)


def any_request(random: Random) -> Piece:
    request = random.choice(KINDS)(random)
    data = message(request.command, request.payload, flags=request.flags)
    files = tuple(FILES[name] for name in request.files)
    return Piece(data, files, at_once=random.random() < 0.5)
