# SPDX-License-Identifier: BSD-3-Clause
"""What an operator may write into a policy, and what is said of the rest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from vfio_user_bridge.device import PciRegion
from vfio_user_bridge.errors import UsageError
from vfio_user_bridge.policy.rules import KEYS, WHOLE, Action, Rule, check_served, read, spans

DENY = 'action = "deny"'
CONFIG = 'region = "config"'
COMMAND = f'{CONFIG}\noffset = "0x4-0x5"'
FORCE = f'{COMMAND}\naction = "force"'


def policy(folder: Path, *tables: str) -> Path:
    path = folder / "policy.toml"
    path.write_text("\n".join(f"[[rule]]\n{table}" for table in tables))
    return path


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (
            f"{COMMAND}\n{DENY}",
            {"region": PciRegion.CONFIG, "start": 4, "end": 6, "action": Action.DENY},
        ),
        (
            f'region = "bar5"\noffset = "0"\n{DENY}\naccess = "both"',
            {"region": PciRegion.BAR5, "start": 0, "end": 1, "action": Action.DENY},
        ),
        (
            'region = "rom"\noffset = "all"\naccess = "read"\naction = "log"\nnote = "who reads?"',
            {
                "region": PciRegion.ROM,
                "start": 0,
                "end": WHOLE,
                "action": Action.LOG,
                "writes": False,
                "note": "who reads?",
            },
        ),
        (
            f'device = "0000:01:*"\nregion = "vga"\noffset = 0xA0\naccess = "write"\n{DENY}',
            {
                "device": "0000:01:*",
                "region": PciRegion.VGA,
                "start": 0xA0,
                "end": 0xA1,
                "action": Action.DENY,
                "reads": False,
            },
        ),
        (
            f"{FORCE}\nvalue = 0x400\nmask = 0x403",
            {
                "region": PciRegion.CONFIG,
                "start": 4,
                "end": 6,
                "action": Action.FORCE,
                "value": b"\x00\x04",
                "mask": b"\x03\x04",
            },
        ),
        (
            f"{FORCE}\nvalue = 0x1234",
            {
                "region": PciRegion.CONFIG,
                "start": 4,
                "end": 6,
                "action": Action.FORCE,
                "value": b"\x34\x12",
                "mask": b"\xff\xff",
            },
        ),
    ],
)
def test_rules(tmp_path: Path, table: str, expected: dict[str, Any]) -> None:
    path = policy(tmp_path, table)
    assert read(path) == [Rule(where=f"{path}: rule 1", number=1, **expected)]


@pytest.mark.parametrize(
    ("table", "key", "what"),
    [
        (f"{COMMAND}\n{DENY}\noffsets = 1", "'offsets'", "no such key; there are: device, region"),
        (f'offset = "all"\n{DENY}', "region", "must be given"),
        (f'region = "bar6"\noffset = "all"\n{DENY}', "region", "no 'bar6'; there are: bar0, bar1"),
        (f'region = "BAR0"\noffset = "all"\n{DENY}', "region", "no 'BAR0'"),
        (f'region = 0\noffset = "all"\n{DENY}', "region", "line of text"),
        (f"{CONFIG}\n{DENY}", "offset", "must be given"),
        (f'{CONFIG}\noffset = "4-"\n{DENY}', "offset", "'4-' is neither"),
        (f'{CONFIG}\noffset = "-4"\n{DENY}', "offset", "'-4' is neither"),
        (f"{CONFIG}\noffset = -4\n{DENY}", "offset", "'-0x4' is neither"),
        (f"{CONFIG}\noffset = true\n{DENY}", "offset", "line of text"),
        (f'{CONFIG}\noffset = "٤"\n{DENY}', "offset", "is neither"),
        (f"{CONFIG}\noffset = 0x{'f' * 5000}\n{DENY}", "offset", "is neither"),
        (f'{CONFIG}\noffset = "0x5-0x4"\n{DENY}', "offset", "0x5-0x4 ends before it begins"),
        (f'{COMMAND}\n{DENY}\naccess = "execute"', "access", "there are: both, read, write"),
        (COMMAND, "action", "must be given"),
        (f'{COMMAND}\naction = "drop"', "action", "there are: deny, allow, force, log"),
        (f"{COMMAND}\n{DENY}\nvalue = 0", "value", "only force has one, not deny"),
        (f'{COMMAND}\naction = "log"\nmask = 1', "mask", "only force has one, not log"),
        (FORCE, "value", "must be given"),
        (f"{FORCE}\nvalue = 0x10000", "value", "a number from 0 to 0xffff"),
        (f"{FORCE}\nvalue = 0x{'f' * 5000}", "value", "a number from 0 to 0xffff"),
        (f"{FORCE}\nvalue = -1", "value", "a number from 0 to 0xffff"),
        (f"{FORCE}\nvalue = true", "value", "a number from 0 to 0xffff"),
        (f'{FORCE}\nvalue = "0x1"', "value", "a number from 0 to 0xffff"),
        (f"{FORCE}\nvalue = 0\nmask = 0x10000", "mask", "a number from 0 to 0xffff"),
        (f"{FORCE}\nvalue = 0\nmask = 0", "mask", "without a bit"),
        (f"{FORCE}\nvalue = 6\nmask = 2", "value", "0x6 has bits that aren't in mask, 0x2"),
        (f'{CONFIG}\noffset = "0-8"\naction = "force"\nvalue = 0', "offset", "8 bytes at most"),
        (f'{CONFIG}\noffset = "all"\naction = "force"\nvalue = 0', "offset", "8 bytes at most"),
        (f"{COMMAND}\n{DENY}\nnote = 'a\\nb'\ndevice = 7", "device", "line of text"),
        (f'{COMMAND}\n{DENY}\nnote = "a\\nb"', "note", "line of text"),
    ],
)
def test_wrong_rules(tmp_path: Path, table: str, key: str, what: str) -> None:
    """The second of a file, each in one line that names file, rule and key."""
    path = policy(tmp_path, f'region = "bar0"\noffset = "all"\n{DENY}', table)
    with pytest.raises(UsageError) as wrong:
        read(path)
    text = str(wrong.value)
    assert text.startswith(f"{path}: rule 2, {key}: ")
    assert what in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "no rules"),
        (b"rule = 1", "no rules"),
        (b"rule = [1]", "no rules"),
        (b"[rule]", "no rules"),
        (b"[[rules]]", "'rules' is no key of a policy"),
        (b"[[rule]", "isn't TOML"),
        (b"\xff\xfe", "isn't TOML"),
        (b"a = " + b"9" * 5000, "isn't TOML"),
        (b"a = " + b"[" * 5000, "isn't TOML"),
        (b"#" * (1 << 20) + b"\n", "more than 1048576 bytes"),
    ],
)
def test_files_that_are_no_policy(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"^{re.escape(str(path))}:? .*{what}.*$"):
        read(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, what in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UsageError, match=rf"^{re.escape(str(path))}: {what}"):
            read(path)


def bars(offset: str, device: str = "*", access: str = "both") -> str:
    return f'device = "{device}"\nregion = "bar0"\noffset = "{offset}"\naccess = "{access}"\n{DENY}'


@pytest.mark.parametrize(
    ("tables", "useless"),
    [
        ((bars("0x0-0xf"), bars("0x8-0x17")), None),
        ((bars("0x8-0xb"), bars("0x0-0xf")), None),
        ((bars("0x0-0xf"), bars("0x8-0xb")), 2),
        ((bars("0x0-0x7"), bars("0x8-0xf"), bars("0x4-0xb")), 3),
        ((bars("0x0-0x7"), bars("0x9-0xf"), bars("0x4-0xb")), None),
        ((bars("all"), bars("0x4")), 2),
        ((bars("0x4"), bars("all")), None),
        ((bars("all", access="read"), bars("0x4")), None),
        ((bars("all", access="read"), bars("all", access="write"), bars("0x4")), 3),
        ((bars("0x4", device="edu"), bars("0x4")), None),
        ((bars("0x4"), bars("0x4", device="edu")), 2),
        ((bars("0x4", device="edu"), bars("0x4", device="nic")), None),
        ((bars("0x4", device="e*"), bars("0x4", device="edu")), 2),
        ((bars("0x4", device="e*"), bars("0x4", device="nic"), bars("0x4")), 3),
    ],
)
def test_the_first_counts(tmp_path: Path, tables: tuple[str, ...], useless: int | None) -> None:
    """So one that comes too late for all that it has is a mistake."""
    rules = read(policy(tmp_path, *tables))
    if useless is None:
        check_served(rules, ("edu", "nic"))
    else:
        with pytest.raises(UsageError, match=rf": rule {useless}, offset: rules before"):
            check_served(rules, ("edu", "nic"))


def test_spans_are_disjoint_and_in_order(tmp_path: Path) -> None:
    tables = (bars("0x8-0xb"), bars("0x0-0xf"), bars("0xe-0x11", access="write"))
    rules = read(policy(tmp_path, *tables))
    first, second, third = rules
    assert spans(rules, writes=False) == [(0, 8, second), (8, 12, first), (12, 16, second)]
    assert spans(rules, writes=True)[-1] == (16, 18, third)


def test_rules_for_a_device_that_is_not_served(tmp_path: Path) -> None:
    rules = read(policy(tmp_path, bars("0x4"), bars("0x8", device="0000:01:*")))
    check_served(rules, ["edu", "0000:01:00.0"])
    with pytest.raises(UsageError, match=r": rule 2, device: no '0000:01:\*' is .*: edu, nic$"):
        check_served(rules, ["edu", "nic"])


def test_the_examples_of_the_page(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs/users/policy.md").read_text()
    path = tmp_path / "policy.toml"
    path.write_text("\n".join(re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)))
    found = [(rule.region, rule.action, rule.reads) for rule in read(path)]
    assert found == [
        (PciRegion.CONFIG, Action.DENY, False),
        (PciRegion.BAR1, Action.DENY, True),
        (PciRegion.BAR0, Action.FORCE, False),
        (PciRegion.BAR2, Action.DENY, True),
    ]
    documented = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)))
    assert documented == list(KEYS)
