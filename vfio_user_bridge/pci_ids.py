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
        self._sections: dict[bytes, bytes] = {}  # those that were asked for, by heading

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

    def _name(self, heading: bytes, entry: bytes = b"") -> str | None:
        """What stands behind *entry* in the section behind *heading*, or behind that itself."""
        if heading not in self._sections:
            self._sections[heading] = self._section(heading)
        section = self._sections[heading]
        start = section.find(entry)
        if start < 0:
            return None
        line, _, _ = section[start + len(entry) :].partition(b"\n")
        return line.decode(errors="replace").strip() or None

    def _section(self, heading: bytes) -> bytes:
        start = self._data.find(heading)
        if start < 0:
            return b""
        start += len(heading)
        following = _TOP_LEVEL.search(self._data, start)
        return self._data[start : following.start() if following else None]
