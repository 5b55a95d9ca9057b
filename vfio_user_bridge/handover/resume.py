# SPDX-License-Identifier: BSD-3-Clause
"""Going on with a device and its client where a predecessor left them."""

from __future__ import annotations

import socket

from vfio_user_bridge.counters import Counters
from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.port import Port
from vfio_user_bridge.protocol import HEADER, Command, Header
from vfio_user_bridge.state import State
from vfio_user_bridge.transport import SO_PEEK_OFF

from .document import to_counters, to_state
from .inherited import Left


def resume(port: Port, left: Left, engine: str) -> tuple[socket.socket, State | None] | None:
    """Give *port* what its predecessor had. Call it while `making_sense`.

    Of one that runs nothing is changed, however late it is: client, journal and files are its own,
    until the port can `succeed` it.

    Gives the client's socket, and its state unless it has yet to agree on a version; None if there
    is no client.

    :param engine: that is to converse with the client
    :raise BridgeError: it isn't the client's, or the device can't go on with it
    """
    document = left.document
    if document["client"] is not None and document["engine"] != engine:
        raise BridgeError(
            f"{port.device.name}: its client is served by --engine {document['engine']}, which it"
            " keeps until it goes"
        )
    if document["device"]:
        port.device.restore(document["device"], left.take)
    port.device.restore_layers(document["layers"], left.take)
    port.draining, port.deadline = document["draining"], document["deadline"]
    port.clients, port.since = document["clients"], document["since"]
    port.past = to_counters(document["past"])
    if document["client"] is None:
        if left.journal and not left.runs:
            left.journal.forget_client()  # its bridge was about to
        return None
    client = socket.socket(fileno=left.take(document["client"]))
    try:
        journal = None if left.runs else left.journal  # one that runs has settled it
        if journal:
            journal.recover(client)
        agreed = document["state"] and not (journal and journal.begun and _is_new(client))
        state = _state(port, left) if agreed else None
    except BaseException:
        client.close()
        raise
    return client, state


def _state(port: Port, left: Left) -> State:
    rows = left.rows
    if port.ledger and not left.journal:  # else these are where they were
        rows = port.ledger.journal.rows()
        for command, row in left.rows.items():
            for at, count in enumerate(row):
                rows[command][at] = count
    state = to_state(left.document["state"], left.take, Counters(rows))
    try:
        _adopt(port, left, state)
    except BaseException:
        state.close()  # a guest's memory stays as long as anybody has them
        raise
    state.ledger = port.ledger
    return state


def _adopt(port: Port, left: Left, state: State) -> None:
    """The DMA maps."""
    for entry, file in left.maps:
        try:
            port.device.adopt(entry, state.files.use(file))
        except OSError as error:
            raise BridgeError(
                f"{port.device.name}: can't go on with the DMA map of {entry.size:#x} bytes at"
                f" {entry.address:#x}: {error.strerror}"
            ) from None
        state.maps.add(entry)
        if file:
            state.file_of[entry.address] = file
        if port.ledger and not left.journal:
            port.ledger.journal.add_map(entry, file)
    state.files.drop_unused()
    state.files.changed = False


def _is_new(client: socket.socket) -> bool:
    """Whether what it waits for is the answer to its VERSION."""
    # Else a look would begin behind what a predecessor has looked at.
    client.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    try:
        head = client.recv(HEADER.size, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        head = b""
    return len(head) == HEADER.size and Header.unpack(head).command == Command.VERSION
