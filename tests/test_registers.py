# SPDX-License-Identifier: BSD-3-Clause
"""Register files: ours against the headers and specifications they are from, and who names what."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from vfio_user_bridge.device import PciRegion
from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.models import edu
from vfio_user_bridge.trace.capabilities import capabilities
from vfio_user_bridge.trace.names import SHIPPED, Names
from vfio_user_bridge.trace.records import Header, Read
from vfio_user_bridge.trace.register_file import Field, Register, load
from vfio_user_bridge.trace.text import words

from .trace_files import config_space

BAR0, CONFIG = PciRegion.BAR0, PciRegion.CONFIG
PCI = load(SHIPPED / "pci.toml")
NVME_CLASS = (0x09, 3, 0x010802)
EDU_IDS = (0x00, 4, 0x11E81234)
CAP_LIST = (0x06, 2, 0x10)


def names(config: bytes, *files: Path) -> Names:
    return Names(Header("some", "9.8.7", 0, (), (), config), files)


# ---- What we ship --------------------------------------------------------------------------------

#: where the header has fields of a register under another name than the register's
FIELD_PREFIXES = {"PM_PMC": "PM_CAP", "ERR_UNCOR_STATUS": "ERR_UNC", "ERR_COR_STATUS": "ERR_COR"}


def pci_regs() -> dict[str, int]:
    """The numbers in linux/pci_regs.h, without PCI_."""
    text = Path("/usr/include/linux/pci_regs.h").read_text()
    pattern = r"^#define\s+PCI_(\w+)\s+(0x[0-9a-fA-F]+|\d+)\b"
    return {name: int(number, 0) for name, number in re.findall(pattern, text, re.MULTILINE)}


def mask(field: Field) -> int:
    return (2 << field.high) - (1 << field.low)


def check(register: Register, prefix: str, header: dict[str, int]) -> None:
    """A register and its fields are in the header, *prefix* before their names."""
    name = f"{prefix}{register.name}"
    assert header[name] == register.offset, name
    fields = FIELD_PREFIXES.get(name, name)
    for field in register.fields:
        known = {header.get(f"{fields}_{field.name}{end}") for end in ("", "_MASK")}
        assert mask(field) in known, f"{name}.{field.name}"


def test_pci_header() -> None:
    header = pci_regs()
    for register in PCI.regions[CONFIG]:
        check(register, "", header)
    named = {r.offset + byte for r in PCI.regions[CONFIG] for byte in range(r.size)}
    # PCI 3.0, 6.1: these bytes are reserved.
    assert set(range(0x40)) - named == set(range(0x35, 0x3C))


def test_pci_capabilities() -> None:
    header = pci_regs()
    assert len(PCI.capabilities) > 20
    for capability in PCI.capabilities:
        prefix = "EXT_CAP_ID_" if capability.extended else "CAP_ID_"
        assert header[prefix + capability.name] == capability.id, capability.name
        for register in capability.registers:
            check(register, f"{capability.name}_", header)


def test_edu() -> None:
    """As the model has it, which the host's tests compare with QEMU's."""
    found = {r.name: r for r in load(SHIPPED / "edu.toml").regions[BAR0]}
    assert {name: r.offset for name, r in found.items()} == {r.name: r for r in edu.Register}
    for name, register in found.items():
        assert register.size == (8 if name.startswith("DMA_") else 4)
    bits = {(name, f.name): mask(f) for name, r in found.items() for f in r.fields}
    assert bits["STATUS", "RAISE_IRQ"] == edu.STATUS_IRQ_FACTORIAL
    assert bits["IRQ_STATUS", "FACTORIAL"] == edu.IRQ_FACTORIAL
    assert bits["IRQ_STATUS", "DMA"] == edu.IRQ_DMA
    assert bits["DMA_COMMAND", "START"] == edu.DMA_RUN
    assert bits["DMA_COMMAND", "DIRECTION"] == edu.DMA_TO_MEMORY
    assert bits["DMA_COMMAND", "RAISE_IRQ"] == edu.DMA_RAISE_IRQ


def test_nvme() -> None:
    """Values that the specification gives for an ordinary controller and its driver."""
    nvme = names(config_space(NVME_CLASS))
    # Version 1.4 ("Offset 8h: VS"); entries of 64 and 16 bytes, 2**6 and 2**4 ("CC.IOSQES").
    for offset, value, name, fields in (
        (0x08, 0x00010400, "VS", {"MJR": 1, "MNR": 4, "TER": 0}),
        (0x14, 0x00460001, "CC", {"EN": 1, "IOSQES": 6, "IOCQES": 4, "SHN": 0}),
        (0x14, 0x00464001, "CC", {"EN": 1, "SHN": "normal"}),
        (0x1C, 0x00000001, "CSTS", {"RDY": 1, "CFS": 0}),
        (0x1C, 0x00000009, "CSTS", {"RDY": 1, "SHST": "complete"}),
        (0x24, 0x001F001F, "AQA", {"ASQS": 31, "ACQS": 31}),
    ):
        assert nvme.name(BAR0, offset, 4) == name
        assert fields.items() <= nvme.fields(BAR0, offset, value.to_bytes(4, "little")).items()
    # The upper half of CAP alone: DSTRD, NSSRS, CSS (the NVM command set is bit 37), page sizes.
    upper = nvme.fields(BAR0, 4, (0x00F0_0030).to_bytes(4, "little"))
    assert nvme.name(BAR0, 4, 4) == "CAP+0x4"
    assert upper["NSSRS"] == 1
    assert upper["CSS"] == 1
    assert upper["MPSMAX"] == 15
    assert "MQES" not in upper
    # "SQyTDBL" at 1000h + 2y * 4, "CQyHDBL" at 1000h + (2y + 1) * 4.
    doorbells = [nvme.name(BAR0, 0x1000 + 4 * n, 4) for n in range(4)]
    assert doorbells == ["SQTDBL[0]", "CQHDBL[0]", "SQTDBL[1]", "CQHDBL[1]"]


def test_no_two_registers_overlap() -> None:
    for path in SHIPPED.glob("*.toml"):
        for registers in load(path).regions.values():
            ends = [(r.offset, r.offset + r.size) for r in registers if r.repeat == 1]
            for (_, end), (start, _) in itertools.pairwise(ends):
                assert end <= start, path


# ---- How names are given -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "count", "expected"),
    [
        (0x00, 2, "VENDOR_ID"),
        (0x02, 2, "DEVICE_ID"),
        (0x00, 4, "VENDOR_ID/DEVICE_ID"),
        (0x05, 1, "COMMAND+0x1"),
        (0x05, 2, "COMMAND+0x1/STATUS"),
        (0x08, 4, "REVISION_ID…CLASS_DEVICE"),
        (0x36, 1, ""),
        (0x3A, 4, "INTERRUPT_LINE/INTERRUPT_PIN"),
        (0x4000, 4, ""),
        (0x00, 0, "VENDOR_ID"),
    ],
)
def test_names(offset: int, count: int, expected: str) -> None:
    assert names(b"").name(CONFIG, offset, count) == expected


def test_where() -> None:
    known = names(config_space(EDU_IDS))
    assert known.where(BAR0, 8, 4) == "bar0 FACTORIAL"
    assert known.where(BAR0, 0x40000, 4) == "bar0 0x40000"
    assert known.where(9, 0x10, 4) == "region9 0x10"
    assert names(b"").where(BAR0, 8, 4) == "bar0 0x8"


def test_fields_of_two_registers_and_of_a_part_of_one() -> None:
    known = names(b"")
    both = known.fields(CONFIG, 4, (0x0010_0006).to_bytes(4, "little"))
    assert (both["MEMORY"], both["MASTER"], both["IO"], both["CAP_LIST"]) == (1, 1, 0, 1)
    upper = known.fields(CONFIG, 5, b"\x04")
    assert upper == {"SERR": 0, "FAST_BACK": 0, "INTX_DISABLE": 1}
    assert known.fields(CONFIG, 0, bytes(64)) == {}


#: where MSI-X, and MSI of 32 and 64 bits come in a list
LIST = config_space(
    CAP_LIST,
    (0x34, 1, 0x40),
    (0x40, 4, 0x8003_5011),
    (0x50, 4, 0x0000_7005),
    (0x70, 4, 0x0080_8005),
    (0x80, 4, 0x0000_00EE),
)


@pytest.mark.parametrize(
    ("offset", "count", "expected"),
    [
        (0x40, 1, "MSIX"),
        (0x42, 2, "MSIX.FLAGS"),
        (0x44, 4, "MSIX.TABLE"),
        (0x4C, 4, ""),
        (0x58, 2, "MSI.DATA_32"),
        (0x5C, 4, "MSI.MASK_32"),
        (0x78, 4, "MSI.ADDRESS_HI"),
        (0x7C, 2, "MSI.DATA_64"),
        (0x80, 1, "MSI.MASK_64"),
        (0x90, 1, ""),
        (0x58, 4, "MSI.DATA_32"),
        (0x5A, 2, "MSI+0xa"),
        (0x50, 4, "MSI"),
    ],
)
def test_capabilities_are_where_the_list_has_them(offset: int, count: int, expected: str) -> None:
    assert names(LIST).name(CONFIG, offset, count) == expected


def test_extended_capabilities() -> None:
    config = config_space((0x100, 4, 0x1501_0001), (0x150, 4, 0x0001_000E), size=4096)
    assert list(capabilities(config)) == [(1, True, 0x100), (14, True, 0x150)]
    known = names(config)
    assert known.name(CONFIG, 0x104, 4) == "ERR.UNCOR_STATUS"
    assert known.name(CONFIG, 0x120, 4) == "ERR.HEADER_LOG[1]"
    assert known.name(CONFIG, 0x156, 2) == "ARI.CTRL"
    assert known.name(CONFIG, 0x153, 1) == "ARI+0x3"
    assert known.name(CONFIG, 0x150, 4) == "ARI"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (b"", []),
        (config_space(CAP_LIST)[:8], []),
        (config_space((0x34, 1, 0x40), (0x40, 2, 0x05)), []),  # status says that there is no list
        (config_space(CAP_LIST, (0x34, 1, 0x40), (0x40, 2, 0x4005)), [(5, False, 0x40)]),
        (config_space(CAP_LIST, (0x34, 1, 0x43), (0x40, 2, 0x1005)), [(5, False, 0x40)]),
        (config_space(CAP_LIST, (0x34, 1, 0xFC), (0xFC, 2, 0xFF05)), [(5, False, 0xFC)]),
        (config_space((0x100, 4, 0xFFFF_FFFF), size=4096), []),
        (config_space((0x100, 4, 0x1001_0001), size=4096), [(1, True, 0x100)]),
        (config_space((0x100, 4, 0xFF01_0001), size=512), [(1, True, 0x100)]),
        # The kernel hides the first so (vfio_ecap_init).
        (config_space((0x100, 4, 0x1400_0000), (0x140, 4, 0x0001), size=4096), [(1, True, 0x140)]),
    ],
    ids=[
        "none",
        "short",
        "off",
        "circle",
        "low bits",
        "at the end",
        "all ones",
        "loop",
        "beyond",
        "hidden",
    ],
)
def test_lists_that_lead_nowhere(config: bytes, expected: list[tuple[int, bool, int]]) -> None:
    assert list(capabilities(config)) == expected


# ---- Those of users ------------------------------------------------------------------------------

MINE = """
[match]
vendor = 0x8086

[bar0]
CTRL = {offset = 0x0, fields = {FD = 0, SPEED = "9:8"}, values.SPEED = {0 = "10", 0b10 = "1000"}}
RDT = {offset = 0x2818, repeat = 2, stride = 0x100}

[config]
MINE = {offset = 0x00, size = 2}
"""


def test_a_users_file_comes_first(tmp_path: Path) -> None:
    """Whatever it matches: who names it knows what for."""
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    known = names(config_space(EDU_IDS), path)
    assert known.name(CONFIG, 0, 2) == "MINE"
    assert known.name(BAR0, 0, 4) == "CTRL"
    assert known.name(BAR0, 8, 4) == "FACTORIAL"
    assert [known.name(BAR0, 0x2818 + n, 4) for n in (0, 0x100, 0x104, 0x200)] == [
        *("RDT[0]", "RDT[1]", "", "")
    ]
    assert known.fields(BAR0, 0, b"\x01\x02\0\0") == {"FD": 1, "SPEED": "1000"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[bar0", "no TOML: Expected ']' at the end of a table declaration (at end of document)"),
        ("bar0 = 7", "bar0: must be a table, and is 7"),
        ("[bar9]", "bar9: there is no such key"),
        ("[bar0]\nCTRL = 0", "bar0.CTRL: must be a table, and is 0"),
        ("[bar0]\nCTRL = {}", "bar0.CTRL.offset: must be a whole number from 0 to "),
        (f"[bar0]\nCTRL = {{offset = 0x{'f' * 5000}}}", "bar0.CTRL.offset: must be a whole number"),
        (f"bar0 = 0x{'f' * 5000}", "bar0: must be a table, and is a number of thousands of digits"),
        ("[bar0]\nCTRL = {offset = -1}", "bar0.CTRL.offset: must be a whole number from 0 to "),
        ("[bar0]\nCTRL = {offset = true}", "bar0.CTRL.offset: must be a whole number from 0 to "),
        ("[bar0]\nCTRL = {offset = 0, size = 9}", "bar0.CTRL.size: must be a whole number from 1 "),
        ("[bar0]\nCTRL = {offset = 0, width = 4}", "bar0.CTRL.width: there is no such key"),
        ("[bar0]\nCTRL = {offset = 0, fields.EN = 32}", "bar0.CTRL.fields.EN: must be a bit or "),
        ("[bar0]\nCTRL = {offset = 0, fields.EN = '0:7'}", "bar0.CTRL.fields.EN: must be a bit or"),
        ("[bar0]\nCTRL = {offset = 0, values.EN.0 = 'x'}", "bar0.CTRL.values.EN: there is no such"),
        (
            "[bar0]\nCTRL = {offset = 0, fields.EN = 1, values.EN.x = 'x'}",
            "bar0.CTRL.values.EN.x: must be a number",
        ),
        (
            "[bar0]\nCTRL = {offset = 0, fields.EN = 1, values.EN.0 = 7}",
            "bar0.CTRL.values.EN.0: must be a name, and is 7",
        ),
        ('[bar0."\\u001b"]\noffset = 0', "bar0: '\\x1b' is no name"),
        ("[config]\nA = {offset = 0, when = 'B.C = 1'}", 'config.A.when: must be as "FLAGS.64BIT'),
        ("[match]\nvendor = 0x10000", "match.vendor: must be a whole number from 0 to 0xffff"),
        ("[match]\nname = 1", "match.name: there is no such key"),
        ("[capability.MSI]\nsize = 8", "capability.MSI.id: must be a whole number from 0 to 0xff"),
        (
            "[capability.MSI]\nid = 5\nextended = 1",
            "capability.MSI.extended: must be true or false",
        ),
        ("[" * 2000, "no TOML: "),
        ("\x1b", "no TOML: "),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(BridgeError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: {says}")
    assert "\n" not in str(error.value)


def test_files_that_cant_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, says in (
        ("none", f"can't read {tmp_path}/none: No such file or directory"),
        ("binary", f"{tmp_path}/binary: no TOML: "),
    ):
        with pytest.raises(BridgeError) as error:
            load(tmp_path / name)
        assert str(error.value).startswith(says)


def test_the_page_for_users(tmp_path: Path) -> None:
    """Its files can be read, and the line that it shows is what is shown."""
    page = (Path(__file__).parents[1] / "docs/users/registers.md").read_text()
    files = []
    for number, text in enumerate(
        re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    ):
        files.append(tmp_path / f"{number}.toml")
        files[-1].write_text(text)
    assert len(files) == 3
    known = Names(Header("some", "9.8.7", 0, (), (), b""), files)
    said = words(Read(0, 0, 0, 0, 0, 4, (0x241).to_bytes(4, "little")), known)
    assert f"\n    {said}\n" in page
    assert known.name(BAR0, 0xE058, 4) == "TDT[1]"
