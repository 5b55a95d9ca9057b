# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge status`: what a running bridge does."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .control import add_control

if TYPE_CHECKING:
    from vfio_user_bridge.terminal import Part

NAME = "status"
SUMMARY = "show what a running bridge does"
DESCRIPTION = """\
Show what a running bridge does: what confines it, and for each device its
client, DMA maps, interrupts, messages and how long they took, clients since the
start, recording and last error.
"""
#: seconds between two looks of --watch
INTERVAL = 1.0

_PERCENTILES = ("p50", "p90", "p99", "max")
_STATE_STYLES = {"serving": "green", "wanted by the host": "bold red"}


def add_to(parser: argparse.ArgumentParser) -> None:
    add_control(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="all that is known, for programs")
    form.add_argument("--watch", action="store_true", help="look again each second, until Ctrl-C")


def run(options: argparse.Namespace) -> None:
    import json
    from functools import partial

    from vfio_user_bridge import terminal
    from vfio_user_bridge.management.control import ask

    look = partial(ask, options.control, "status")
    if options.json:
        print(json.dumps(look(), indent=2))
    elif options.watch:
        look()  # what is wrong from the start is the end
        terminal.watch(lambda: _seen(look), INTERVAL)
    else:
        terminal.show(parts(look()))


def _seen(look: Callable[[], Any]) -> list[Part]:
    """A bridge that was killed may be back the next time."""
    from vfio_user_bridge.errors import BridgeError

    try:
        return list(parts(look()))
    except BridgeError as error:
        return [str(error)]


def parts(status: Mapping[str, Any]) -> Iterator[Part]:
    """The answer of the control socket's method `status`, for people."""
    from vfio_user_bridge.terminal import Styled

    yield f"vfio-user-bridge {status['version']}, pid {status['pid']}"
    confinement = status["confinement"]
    if confinement["in_force"]:
        yield f"  confined:   {'; '.join(confinement['in_force'])}"
    for what in confinement["lacking"]:
        yield Styled(f"  lacking:    {what}", "yellow")
    for device in status["devices"]:
        yield ""
        yield from _device(device)


def _device(device: Mapping[str, Any]) -> Iterator[Part]:
    from vfio_user_bridge.terminal import Styled

    draining = ", draining" if device["draining"] else ""
    yield Styled(
        f"{device['name']}: {device['state']}{draining}", _STATE_STYLES.get(device["state"], "")
    )
    yield f"  socket:     {device['socket']}"
    if client := device["client"]:
        yield from _client(device, client)
    yield f"  clients:    {device['clients']} since the start"
    for rule in device["rules"]:
        note = f" ({rule['note']})" if rule["note"] else ""
        yield f"  policy:     rule {rule['number']}{note}: {rule['hits']:,} accesses"
    if recording := device["recording"]:
        sizes = f"{recording['bytes']:,} of {recording['limit']:,} bytes"
        yield f"  recording:  {recording['records']:,} records, {sizes}"
    if error := device["last_error"]:
        yield Styled(f"  last error: {_time(error['time'])}: {error['text']}", "yellow")


def _client(device: Mapping[str, Any], client: Mapping[str, Any]) -> Iterator[Part]:
    since, connected = _time(client["since"]), client["connected"]
    yield f"  client:     pid {client['pid']}, uid {client['uid']}"
    yield f"  connected:  {since}, for {connected:.0f} s"
    yield f"  DMA maps:   {device['maps']:,}, {device['mapped']:,} bytes"
    irqs = (f"{name} {count}" for name, count in device["irqs"].items())
    yield f"  interrupts: {', '.join(irqs) or 'none'}"
    yield f"  refused:    {device['refused']:,}"
    yield _messages(device["messages"])


def _messages(messages: Mapping[str, Mapping[str, float]]) -> Part:
    from vfio_user_bridge.terminal import Table

    table = Table(
        ("  MESSAGES", "COUNT", *(f"{name} µs" for name in _PERCENTILES)),
        right=("COUNT", *(f"{name} µs" for name in _PERCENTILES)),
    )
    for command, figures in messages.items():
        times = (f"{figures[name]:,.1f}" for name in _PERCENTILES)
        table.rows.append((f"  {command}", f"{figures['count']:,}", *times))
    return table


def _time(seconds: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
