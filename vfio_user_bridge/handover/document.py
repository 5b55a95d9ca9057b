# SPDX-License-Identifier: BSD-3-Clause
"""The document that says what a device's client and its bridge are at: MessagePack, with a version.

Open files are in it by name. DMA maps and how often which messages came are in the journal, if
there is one, and else in the document too.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vfio_user_bridge import __version__, extras
from vfio_user_bridge.counters import Counters, Rows, Trouble, no_rows
from vfio_user_bridge.device import Keep, Take
from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.eventfd import Kept
from vfio_user_bridge.messages import DmaMap
from vfio_user_bridge.protocol import Capabilities
from vfio_user_bridge.state import State

from .names import plain

if TYPE_CHECKING:
    from vfio_user_bridge.port import Port

#: of the format; a bridge that finds another refuses it
VERSION = 1

Document = dict[str, Any]

#: what comes of values that aren't what they should be
_NONSENSE = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, struct.error)

_OF_ALL = {
    *("name", "draining", "deadline", "clients", "since", "past"),
    *("device", "layers", "client", "state"),
}


def pack(document: Mapping[str, Any]) -> bytes:
    data: bytes = msgpack().packb({"version": VERSION, **document})
    return data


def unpack(data: bytes) -> Document:
    """:raise BridgeError: it is another version's, or none"""
    try:
        document = msgpack().unpackb(data, strict_map_key=False)
        version = document["version"]
    except Exception:
        raise BridgeError("its document makes no sense") from None
    if version != VERSION:
        raise BridgeError(f"its document has version {version}, this bridge knows {VERSION}")
    if not document.keys() >= _OF_ALL or not isinstance(document["name"], str):
        raise BridgeError("its document makes no sense")
    return dict(document)


@contextlib.contextmanager
def making_sense() -> Iterator[None]:
    """What is done within is done with what a document says.

    :raise BridgeError: it can't be
    """
    try:
        yield
    except _NONSENSE as error:
        raise BridgeError(f"its document makes no sense: {error!r}") from None
    except OSError as error:
        raise BridgeError(f"what it left can't be used: {error.strerror or error}") from None


def msgpack() -> Any:
    """:raise BridgeError: it isn't installed"""
    return extras.load("msgpack", "replacing a bridge under a running guest")


# ---- A device, its client and its bridge --------------------------------------------------------


def of_port(port: Port, keep: Keep, *, whole: bool = False) -> Document:
    """What a successor must know.

    :param whole: whether it takes over now; else it may find a journal, and a device that has no
        client is opened anew
    :raise BridgeError: this device can't be handed over
    """
    name, session = port.device.name, port.session if port.has_client else None
    if session and not session.can_be_resumed:
        if whole:
            raise BridgeError(
                f"{name}: its client has a twin socket, which libvfio-user keeps to itself"
            )
        session = None  # it will be gone with this process
    document: Document = {
        "name": name,
        "bridge": __version__,
        "draining": port.draining,
        "deadline": port.deadline,
        "clients": port.clients,
        "since": port.since,
        "past": of_counters(port.past if session or not port.session else port.totals),
        "device": port.device.save(keep) if session or whole else None,
        "layers": port.device.save_layers(keep),
        "engine": session.engine if session else None,
        "client": None,
        "state": None,
    }
    if session:
        assert port.client
        client = f"client-{port.clients}-{plain(name)}"
        document["client"] = keep(client, port.client.socket.fileno())
        document["state"] = of_state(session.state, keep) if session.state else None
    if whole:
        state = session.state if session else None
        document["maps"] = of_maps(state) if state else []
        document["rows"] = of_rows(state.counters.rows) if state else {}
        document["journal"] = port.ledger.handed(keep) if port.ledger else None
    return document


# ---- A client's state --------------------------------------------------------------------------


def of_state(state: State, keep: Keep) -> Document:
    """All of *state* but the maps."""
    capabilities = asdict(state.capabilities)
    return {
        "capabilities": {**capabilities, "named": sorted(capabilities["named"])},
        "shared_memory": state.shared_memory,
        "warned_of_private_ram": state.warned_of_private_ram,
        "vectors": {index: _bits(bits) for index, bits in state.vectors.items()},
        "since": state.since,
        "files": [[number, keep(name, fd)] for number, name, fd in state.files.named()],
        "relayed": [
            [*which, ours.save(keep), theirs.save(keep)]
            for which, (ours, theirs) in state.relayed.items()
        ],
        "troubles": _troubles(state.counters),
    }


def to_state(saved: Mapping[str, Any], take: Take, counters: Counters) -> State:
    """:raise BridgeError: an open file is missing"""
    given = saved["capabilities"]
    counters.refused, counters.trouble = _to_troubles(saved["troubles"])
    state = State(
        Capabilities(**{**given, "named": frozenset(given["named"])}),
        shared_memory=saved["shared_memory"],
        warned_of_private_ram=saved["warned_of_private_ram"],
        vectors={index: int.from_bytes(bits, "little") for index, bits in saved["vectors"].items()},
        since=saved["since"],
        counters=counters,
    )
    try:
        for number, name in saved["files"]:
            state.files.put(number, name, take(name))
        for index, subindex, *names in saved["relayed"]:
            pair = state.relayed[index, subindex] = Kept(), Kept()
            for event, name in zip(pair, names, strict=True):
                event.fd = -1 if name is None else take(name)
    except BaseException:
        state.close()
        raise
    return state


def of_maps(state: State) -> list[list[int]]:
    """Each with the number of its file."""
    return [
        [m.flags, m.offset, m.address, m.size, state.file_of.get(m.address, 0)] for m in state.maps
    ]


def to_maps(saved: list[list[int]]) -> list[tuple[DmaMap, int]]:
    return [(DmaMap(*fields), file) for *fields, file in saved]


# ---- Counts ------------------------------------------------------------------------------------


def of_counters(counters: Counters) -> Document:
    return {"rows": of_rows(counters.rows), "troubles": _troubles(counters)}


def to_counters(saved: Mapping[str, Any]) -> Counters:
    counters = Counters(to_rows(saved["rows"]))
    counters.refused, counters.trouble = _to_troubles(saved["troubles"])
    return counters


def of_rows(rows: Rows) -> dict[int, dict[int, int]]:
    """Without what is 0."""
    return {
        command: {at: count for at, count in enumerate(row) if count}
        for command, row in list(rows.items())
    }


def to_rows(saved: Mapping[int, Mapping[int, int]]) -> Rows:
    rows = no_rows()
    for command, row in saved.items():
        for at, count in row.items():
            rows[command][at] = count
    return rows


def _troubles(counters: Counters) -> list[Any]:
    last = counters.trouble
    return [counters.refused, [last.time, last.text] if last else None]


def _to_troubles(saved: list[Any]) -> tuple[int, Trouble | None]:
    refused, last = saved
    return refused, Trouble(*last) if last else None


def _bits(bits: int) -> bytes:
    return bits.to_bytes(-(-bits.bit_length() // 8), "little")
