# SPDX-License-Identifier: BSD-3-Clause
"""Makes the corpus anew: `python -m integration.fuzz.record`.

A real QEMU is taken through the chapters of `integration.edu_script`, with a `tap` between it and
`serve model:edu`. QEMU's start, and the beginning of each chapter, are inputs of the targets
that hold a conversation; one message of each kind is an input of the one that parses.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from pathlib import Path

from integration.edu_script import CHAPTERS, see
from integration.fuzz import CORPUS
from integration.fuzz.pieces import Piece, pack
from integration.fuzz.tap import tap
from tests.running_server import server
from vfio_user_bridge import qemu
from vfio_user_bridge.messages import REGION_ACCESS
from vfio_user_bridge.protocol import HEADER, Command, Header

#: messages of a chapter: short inputs are tried more often
MOST = 36
ACCESSES = (Command.REGION_READ, Command.REGION_WRITE)
#: what a conversation can't do without
NEEDED = (Command.VERSION, Command.DMA_MAP, Command.DMA_UNMAP, Command.DEVICE_SET_IRQS)
PREFIX = "qemu-"  # of the files that are made here; the others are findings


def main() -> None:
    chapters = dict(record())
    everything = [message for messages in chapters.values() for message in messages]
    inputs = {name: pack(messages) for name, messages in conversations(chapters)}
    write("protocol", dict(kinds(everything)))
    write("transport", inputs)
    write("session", inputs)


def record() -> Iterator[tuple[str, list[Piece]]]:
    """Each chapter's name and all that QEMU sent in it."""
    with tempfile.TemporaryDirectory() as folder:
        bridge, tapped = Path(folder, "bridge.sock"), Path(folder, "tapped.sock")
        device = json.dumps({**qemu.device(tapped), "addr": "4.0"})
        with server(bridge, "--socket-path", str(bridge)):
            for chapter in CHAPTERS:
                with tap(tapped, bridge) as messages:
                    see(chapter, device)
                tapped.unlink()
                yield chapter.__name__.replace("_", "-"), messages


def conversations(chapters: dict[str, list[Piece]]) -> Iterator[tuple[str, list[Piece]]]:
    """How QEMU starts, and what is particular to each chapter, after that of the start it needs."""
    start = [together[0] for together in takewhile(are_same, zip(*chapters.values(), strict=False))]
    yield "start", start
    needed = [message for message in start if command(message) in NEEDED]
    for name, messages in chapters.items():
        yield name, [*needed, *islice(shortened(messages[len(start) :]), MOST)]


def are_same(messages: Iterable[Piece]) -> bool:
    """Whether only their IDs differ."""
    return len({(message.data[2:], message.files) for message in messages}) == 1


def shortened(messages: Iterable[Piece]) -> Iterator[Piece]:
    """Without the accesses to regions that are the same as an earlier one but for their IDs."""
    seen = set()
    for message in messages:
        said = message.data[2:]
        if said not in seen or command(message) not in ACCESSES:
            seen.add(said)
            yield message


def command(message: Piece) -> Command:
    return Command(Header.unpack(message.data).command)


def kinds(messages: Iterable[Piece]) -> Iterator[tuple[str, bytes]]:
    """The first message of each kind: the same but for what is written, and where in a region."""
    seen = set()
    for message in messages:
        flags, payload = Header.unpack(message.data).flags, message.data[HEADER.size :]
        if command(message) in ACCESSES:
            _offset, *place = REGION_ACCESS.unpack_from(payload)
            payload = repr(place).encode()
        kind = command(message), flags, payload
        if kind not in seen:
            seen.add(kind)
            name = command(message).name.lower().replace("_", "-")
            yield f"{name}-{len(seen):02}", message.data


def write(target: str, inputs: dict[str, bytes]) -> None:
    """Put these in the place of those that were made before."""
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{PREFIX}*"):
        old.unlink()
    for name, data in inputs.items():
        (folder / f"{PREFIX}{name}").write_bytes(data)
    print(f"{folder}: {len(inputs)} inputs, {sum(map(len, inputs.values()))} bytes")


if __name__ == "__main__":
    main()
