# SPDX-License-Identifier: BSD-3-Clause
"""Reads a trace, one record after the other, so that a large one takes no memory.

What a crash leaves ends with zeros, where the next record would have been, or in the middle of one:
the whole records before that are all that there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, get_type_hints

from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.extras import load
from vfio_user_bridge.messages import IrqInfo, RegionInfo

from .records import FORMAT, RECORDS, VERSION, End, Header, Record

# What rubbish can make us take. An access may be as long as `serve --limit transfer` may be.
_LONGEST = (1 << 30) + (1 << 16)  # bytes
_MOST = 1 << 10  # elements of an array or map

_ZEROS = 0  # what stands behind the last record after a crash, as an object

#: in ns, three centuries after the beginning
_LATEST = (1 << 63) - 1
_TYPES = {kind: tuple(get_type_hints(record).values()) for kind, record in RECORDS.items()}


class Trace:
    """The trace in the file *path*: its `header`, and once, by iteration, its records.

    :raise BridgeError: it can't be read, or it is none; by iteration too
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        #: whether the end is missing, as after a crash; known when the records have been read
        self.truncated = False
        msgpack = load("msgpack", "reading a trace")
        self._wrong = (ValueError, msgpack.exceptions.UnpackException)
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise self._unreadable(error) from None
        self._unpacker = msgpack.Unpacker(
            self._file, max_buffer_size=_LONGEST, max_array_len=_MOST, max_map_len=_MOST
        )
        try:
            self.header = self._header()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Record]:
        while (found := self._next()) != _ZEROS:
            match found:
                case [int(kind), *values] if tuple(map(type, values)) == _TYPES.get(kind):
                    record = RECORDS[kind](*values)
                case [int(kind), _, _, _, *_] if kind not in RECORDS:
                    continue  # of a later bridge
                case _:
                    raise self._error(f"what ends at byte {self._unpacker.tell()} is no record")
            if record.t > _LATEST:
                raise self._error(
                    f"the time of what ends at byte {self._unpacker.tell()} is damaged"
                )
            if type(record) is End:
                if not record.reason.isprintable():
                    raise self._error("its end is damaged")
                yield record
                return
            yield record
        self.truncated = True

    def _next(self) -> Any:
        """The next object; `_ZEROS` at the end."""
        try:
            return next(self._unpacker, _ZEROS)
        except OSError as error:
            raise self._unreadable(error) from None
        except self._wrong:
            raise self._error(f"there is no record at byte {self._unpacker.tell()}") from None

    def _header(self) -> Header:
        try:
            first = self._next()
        except BridgeError:
            first = None
        match first:
            case {"format": str(name), "version": int(version)} if name == FORMAT:
                if version != VERSION:
                    raise self._error(
                        f"the trace is of version {version}, and this program reads {VERSION}:"
                        " take the vfio-user-bridge that recorded it"
                    )
            case _:
                raise self._error("it is no trace: serve --record makes them")
        try:
            return _header_of(first)
        except (KeyError, TypeError):
            raise self._error("the trace's header is damaged") from None

    def _unreadable(self, error: OSError) -> BridgeError:
        return BridgeError(f"can't read {self.path}: {error.strerror or error}")

    def _error(self, problem: str) -> BridgeError:
        return BridgeError(f"{self.path}: {problem}")


def _header_of(first: dict[str, Any]) -> Header:
    """:raise KeyError, TypeError: it isn't as the format has it"""
    match first:
        case {
            "device": str(device),
            "bridge": str(bridge),
            "time": int(time),
            "regions": list(regions),
            "irqs": list(irqs),
            "config": bytes(config),
        } if f"{device}{bridge}".isprintable() and all(
            list(map(type, each)) == [int, int, int] for each in (*regions, *irqs)
        ):
            return Header(
                device,
                bridge,
                time,
                tuple(RegionInfo(*region) for region in regions),
                tuple(IrqInfo(*irq) for irq in irqs),
                config,
            )
    raise KeyError
