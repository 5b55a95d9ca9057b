# SPDX-License-Identifier: BSD-3-Clause
"""Names of PCI vendors, devices and classes, from the pci.ids file that distributions ship.

The file has 40,000 lines, of which a machine needs a dozen: these are searched for in its bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

PATHS = (Path("/usr/share/misc/pci.ids"), Path("/usr/share/hwdata/pci.ids"))

# Where a section ends: the next line that is neither indented nor a comment.
_TOP_LEVEL = re.compile(rb"\n[^\t#\n]")


class PciIds:
    """Every lookup gives None for a number without a name."""

    def __init__(self, data: bytes) -> None:
        self._data = b"\n" + data

    @classmethod
    def load(cls, paths: Iterable[Path] = PATHS) -> PciIds:
        """From the first of *paths* that exists; without any, no number has a name."""
        for path in paths:
            if path.exists():
                return cls(path.read_bytes())
        return cls(b"")

    def vendor(self, vendor: int) -> str | None:
        return self._name(b"\n%04x  " % vendor)

    def device(self, vendor: int, device: int) -> str | None:
        return self._name(b"\n%04x  " % vendor, b"\n\t%04x  " % device)

    def class_name(self, class_code: int) -> str | None:
        """The subclass's name, or at least that of the base class; *class_code* has 24 bits."""
        base = b"\nC %02x  " % (class_code >> 16)
        return self._name(base, b"\n\t%02x  " % (class_code >> 8 & 0xFF)) or self._name(base)

    def _name(self, section: bytes, entry: bytes | None = None) -> str | None:
        start, end = self._data.find(section), len(self._data)
        found = section
        if start >= 0 and entry is not None:
            if following := _TOP_LEVEL.search(self._data, start + len(section)):
                end = following.start()
            start, found = self._data.find(entry, start, end), entry
        if start < 0:
            return None
        start += len(found)
        line, _, _ = self._data[start : start + 200].partition(b"\n")
        return line.decode(errors="replace").strip()
