# SPDX-License-Identifier: BSD-3-Clause
"""Every number taken from linux/vfio.h, against the header itself, by asking a C compiler.

A header too old to have a name fails too: the message says which.
"""

from __future__ import annotations

import os
import re
import subprocess
from enum import IntFlag
from pathlib import Path
from struct import Struct
from types import ModuleType

import pytest

from vfio_user_bridge import device, messages
from vfio_user_bridge.kernel import dmabuf, vfio

HOST = Path("/usr/include")


def headers() -> list[Path]:
    """The host's, and that of the newer kernel that the integration tests run on if it is there.

    The names in use are all in the older one; that the newer agrees is what an ABI means.
    """
    # As integration/cache.py has it, which isn't importable from here.
    cache = Path(os.environ.get("VFIO_USER_BRIDGE_CACHE") or "~/.cache/vfio-user-bridge")
    trees = sorted(cache.expanduser().glob("tree-*/usr/include/linux/vfio.h"))
    return [HOST, *(path.parents[1] for path in trees if ".part/" not in str(path))]


@pytest.fixture(params=headers(), ids=lambda path: "host" if path == HOST else "tree")
def include(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def check(include: Path, facts: dict[str, int]) -> None:
    """Assert that each C expression has its value."""
    assert facts
    source = ["#include <stddef.h>", "#include <linux/vfio.h>"]
    source += [
        f'_Static_assert(({expression}) == {value}, "it is not {value}");'
        for expression, value in facts.items()
    ]
    # asm/ is this machine's: Debian has that of every architecture beside linux/.
    arch = gcc("-print-multiarch").stdout.strip()
    paths = (f"-I{include}", f"-I{include / arch}")
    compiled = gcc("-fsyntax-only", "-x", "c", *paths, "-", source="\n".join(source))
    assert compiled.returncode == 0, f"{include}/linux/vfio.h says otherwise:\n{compiled.stderr}"


def gcc(*options: str, source: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["gcc", *options], input=source, capture_output=True, text=True, check=False
    )


def members(flags: type[IntFlag], pattern: str) -> dict[str, int]:
    return {pattern.format(flag.name): flag.value for flag in flags}


def fields(name: str, layout: Struct, names: list[str]) -> dict[str, int]:
    """Offset and size of each field of ``struct name``; *layout* may end before the struct does.

    Padding that a later kernel gave a name is only counted.
    """
    formats = re.findall(r"[A-Za-z]", layout.format)
    assert len(formats) == len(names), f"{name} has other fields than its format"
    facts = {}
    for index, field in enumerate(names):
        if field == "pad":
            continue
        facts[f"offsetof(struct {name}, {field})"] = Struct("=" + "".join(formats[:index])).size
        facts[f"sizeof(((struct {name} *)0)->{field})"] = Struct("=" + formats[index]).size
    return facts


def test_the_compiler_can_say_no() -> None:
    with pytest.raises(AssertionError, match="it is not 12345"):
        check(HOST, {"VFIO_DEVICE_RESET": 12345})
    with pytest.raises(AssertionError, match="VFIO_NO_SUCH_NAME"):
        check(HOST, {"VFIO_NO_SUCH_NAME": 1})


def modules(include: Path) -> list[ModuleType]:
    """Those whose names the header has: dma-bufs are younger than the host's may be."""
    young = "VFIO_DEVICE_FEATURE_DMA_BUF" in (include / "linux/vfio.h").read_text()
    assert young or include == HOST
    return [vfio, dmabuf] if young else [vfio]


def test_constants(include: Path) -> None:
    for module in modules(include):
        names = [name for name in vars(module) if name.startswith("VFIO_")]
        check(include, {name: getattr(module, name) for name in names})


def test_structures(include: Path) -> None:
    """Each Struct there has a comment above it that names its fields and the struct."""
    for module in modules(include):
        source = Path(str(module.__file__)).read_text()
        documented = re.findall(r"^#: (.+): struct (\w+)\n(\w+) = Struct\(", source, re.MULTILINE)
        structs = {name for name, value in vars(module).items() if isinstance(value, Struct)}
        assert {variable for _, _, variable in documented} == structs
        for names, struct, variable in documented:
            check(include, fields(struct, getattr(module, variable), names.split(", ")))


@pytest.mark.parametrize(
    ("flags", "pattern"),
    [
        (device.DeviceFlags, "VFIO_DEVICE_FLAGS_{}"),
        (device.RegionFlags, "VFIO_REGION_INFO_FLAG_{}"),
        (device.IrqFlags, "VFIO_IRQ_INFO_{}"),
        (device.PciRegion, "VFIO_PCI_{}_REGION_INDEX"),
        (device.PciIrq, "VFIO_PCI_{}_IRQ_INDEX"),
        (messages.DmaFlags, "VFIO_DMA_MAP_FLAG_{}"),
        (messages.IrqSetFlags, "VFIO_IRQ_SET_{}"),
        (messages.FeatureFlags, "VFIO_DEVICE_FEATURE_{}"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_wire_constants(include: Path, flags: type[IntFlag], pattern: str) -> None:
    """vfio-user took these over from VFIO."""
    check(include, members(flags, pattern))


def test_counts(include: Path) -> None:
    check(
        include,
        {
            "VFIO_PCI_NUM_REGIONS": len(device.PciRegion),
            "VFIO_PCI_NUM_IRQS": len(device.PciIrq),
            "VFIO_DMA_UNMAP_FLAG_ALL": messages.DMA_UNMAP_FLAG_ALL,
        },
    )


@pytest.mark.parametrize(
    ("struct", "layout", "names"),
    [
        ("vfio_device_info", messages.DeviceInfo.FORMAT, "argsz flags num_regions num_irqs"),
        (
            "vfio_region_info",
            messages.RegionInfo.FORMAT,
            "argsz flags index cap_offset size offset",
        ),
        ("vfio_info_cap_header", messages.RegionCapability.FORMAT, "id version next"),
        ("vfio_irq_info", messages.IrqInfo.FORMAT, "argsz flags index count"),
        ("vfio_irq_set", messages.IrqSet.FORMAT, "argsz flags index start count"),
        ("vfio_device_feature", messages.DeviceFeature.FORMAT, "argsz flags"),
    ],
)
def test_wire_structures(include: Path, struct: str, layout: Struct, names: str) -> None:
    """These go between kernel and client as they are."""
    check(include, fields(struct, layout, names.split()))
