# SPDX-License-Identifier: BSD-3-Clause
"""A Device of which can be recorded what is asked of it, and what it answers: see trace/.

While nothing is recorded, its verbs are the inner device's own, so that this costs nothing. Start
and stop where no verb is under way.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import __version__
from .device import Cells, Device, Keep, PciRegion, Take
from .errors import BridgeError
from .messages import DmaMap, IrqSet
from .protocol import Buffer
from .trace.packing import Packable
from .trace.records import FORMAT, VERSION, Kind
from .trace.writer import Writer, now, unkept
from .wrapped import Wrapped

log = logging.getLogger(__name__)

#: what of config space goes into a trace's header, in bytes
_CONFIG = 4096

_READ, _WRITE = int(Kind.READ), int(Kind.WRITE)
#: what is recorded
_VERBS = (
    *("region_read", "region_write", "set_irqs", "dma_map", "dma_unmap"),
    *("reset", "prepare", "quiesce"),
)


@dataclass(frozen=True, slots=True)
class Progress:
    """Of a recording that goes on; sizes are in bytes."""

    records: int
    bytes: int
    limit: int


class RecordedDevice(Wrapped):
    """All of *inner*, which can be recorded."""

    def __init__(self, inner: Device) -> None:
        super().__init__(inner)
        self._writer: Writer | None = None
        self._file = ""  # what a successor finds it by
        self._progress = unkept()
        self._left: tuple[int, list[Any]] | None = None  # a predecessor's file, and what it saved
        self._changed: Callable[[], None] = lambda: None
        self._ask(inner)

    def _ask(self, device: Device) -> None:
        """Have *device* do all that would be recorded."""
        vars(self).update({verb: getattr(device, verb) for verb in _VERBS})

    def start(self, fd: int, limit: int) -> None:
        """Record into the empty file *fd*, which is ours to close, *limit* bytes at most.

        :raise BridgeError: it can't be done; *fd* is closed
        """
        try:
            if self._writer:
                raise BridgeError(f"{self.name} is being recorded already: stop that first")
            _check(fd)
            try:
                status = os.fstat(fd)
                writer = Writer(fd, self._header(), limit, self._ended, self._progress)
            except OSError as error:
                raise BridgeError(
                    f"can't record {self.name}: {error.strerror}; name a file on another disk"
                ) from None
        except BaseException:
            os.close(fd)
            raise
        self._record(f"recording-{status.st_dev}-{status.st_ino}", writer)
        log.info("%s: recording", self.name)
        self._changed()

    def _record(self, file: str, writer: Writer) -> None:
        """:param file: what `save_layers` calls its file"""
        self._file = file
        self._writer = writer  # from now on `save_layers` has both, in whichever thread
        self._ask(Recorder(self.inner, writer))

    def stop(self, reason: str = "stopped") -> None:
        """End the recording, if there is one."""
        writer, self._writer = self._writer, None
        if not writer:
            return
        self._ask(self.inner)
        self._changed()
        try:
            writer.close(reason)
        except OSError as error:
            log.warning(
                "%s: can't end its recording: %s; all that was recorded is there",
                self.name,
                error.strerror,
            )
        log.info("%s: recorded %d requests, %d bytes", self.name, writer.records, writer.size)

    def _ended(self, reason: str, why: str) -> None:
        log.warning("%s is no longer recorded: %s", self.name, why)
        self.stop(reason)

    @property
    def progress(self) -> Progress | None:
        """Of the recording, if there is one; any thread may ask."""
        writer = self._writer
        return Progress(writer.records, writer.size, writer.limit) if writer else None

    def cells(self, make: Cells) -> None:
        before, self._progress = self._progress, make(2)
        if self._writer:
            self._progress[0], self._progress[1] = before
            self._writer.progress = self._progress
        super().cells(make)

    def on_change(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        super().on_change(changed)
        if self._writer:  # since before there was where to say so
            changed()

    def save_layers(self, keep: Keep) -> dict[str, Any]:
        saved, writer = super().save_layers(keep), self._writer
        if writer:
            file = keep(self._file, writer.fd)
            saved["recording"] = [file, writer.limit, writer.epoch, *self._progress]
        return saved

    def restore_layers(self, saved: Mapping[str, Any], take: Take) -> None:
        super().restore_layers(saved, take)
        if "recording" in saved:
            file, *_ = recording = saved["recording"]
            self._left = take(file), recording

    def succeed(self) -> None:
        super().succeed()
        if not self._left:
            return
        (fd, (file, limit, epoch, *before)), self._left = self._left, None
        for at, number in enumerate(before):
            self._progress[at] = max(self._progress[at], number)  # it may have more, since then
        try:
            writer = Writer(fd, None, limit, self._ended, self._progress, epoch)
        except OSError as error:
            os.close(fd)
            log.warning("%s is no longer recorded: %s", self.name, error.strerror)
            return
        self._record(file, writer)

    def close(self) -> None:
        self.stop("closed")
        if self._left:
            os.close(self._left[0])
            self._left = None
        super().close()

    def _header(self) -> dict[str, Packable]:
        info = self.inner.info
        regions = [self.inner.region_info(index) for index in range(info.num_regions)]
        irqs = [self.inner.irq_info(index) for index in range(info.num_irqs)]
        return {
            "format": FORMAT,
            "version": VERSION,
            "device": self.name,
            "bridge": __version__,
            "regions": [[int(r.index), int(r.flags), r.size] for r in regions if r.size],
            "irqs": [[int(irq.index), int(irq.flags), irq.count] for irq in irqs if irq.count],
            "config": self._config(),
        }

    def _config(self) -> bytes:
        size = self.inner.region_info(PciRegion.CONFIG).size
        try:
            return self.inner.region_read(PciRegion.CONFIG, 0, min(size, _CONFIG))
        except OSError:
            return b""


class Recorder(Wrapped):
    """All of *inner*; what is asked of it goes to *writer*, with what became of it."""

    def __init__(self, inner: Device, writer: Writer) -> None:
        super().__init__(inner)
        self._access, self._put = writer.access, writer.put
        self._read, self._write = inner.region_read, inner.region_write

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        since = now()
        try:
            data = self._read(index, offset, count)
        except OSError as error:
            self._access(_READ, since, now() - since, _code(error), index, offset, count, b"")
            raise
        self._access(_READ, since, now() - since, 0, index, offset, count, data)
        return data

    def region_write(self, index: int, offset: int, data: Buffer) -> None:
        since, count = now(), len(data)
        try:
            self._write(index, offset, data)
        except OSError as error:
            self._access(_WRITE, since, now() - since, _code(error), index, offset, count, data)
            raise
        self._access(_WRITE, since, now() - since, 0, index, offset, count, data)

    def set_irqs(self, request: IrqSet, eventfds: Sequence[int]) -> None:
        what = int(request.index), int(request.flags), request.start, request.count
        act = partial(self.inner.set_irqs, request, eventfds)
        self._do(act, Kind.IRQS, *what, len(eventfds), request.data)

    def dma_map(self, request: DmaMap, fd: int | None) -> None:
        what = request.address, request.size, int(request.flags)
        self._do(partial(self.inner.dma_map, request, fd), Kind.MAP, *what, fd is not None)

    def dma_unmap(self, request: DmaMap) -> None:
        act = partial(self.inner.dma_unmap, request)
        self._do(act, Kind.UNMAP, request.address, request.size)

    def reset(self) -> None:
        self._do(self.inner.reset, Kind.RESET)

    def prepare(self) -> None:
        self._do(self.inner.prepare, Kind.CLIENT, True)

    def quiesce(self, *, reset: bool) -> None:
        self._do(partial(self.inner.quiesce, reset=reset), Kind.CLIENT, False)

    def _do(self, act: Callable[[], None], kind: Kind, *what: Packable) -> None:
        since = now()
        try:
            act()
        except OSError as error:
            self._put(kind, since, now() - since, _code(error), *what)
            raise
        self._put(kind, since, now() - since, 0, *what)


def _code(error: OSError) -> int:
    return error.errno or errno.EIO


def new_file(path: Path) -> int:
    """A file to record into, for this user alone.

    :raise BridgeError: it can't be had
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise BridgeError(
            f"can't record into {path}: it is there already; remove it, or name another file"
        ) from None
    except OSError as error:
        raise BridgeError(
            f"can't record into {path}: {error.strerror}; choose another path, or make its folder"
        ) from None


def _check(fd: int) -> None:
    """:raise BridgeError: nothing can be recorded into *fd*"""
    found = os.fstat(fd)
    name = Path(f"/proc/self/fd/{fd}").readlink()
    if not stat.S_ISREG(found.st_mode):
        raise BridgeError(f"can't record into {name}: it isn't a file; name one")
    if found.st_size:
        raise BridgeError(
            f"can't record into {name}: it isn't empty; remove it, or name another file"
        )
