# SPDX-License-Identifier: BSD-3-Clause
"""A guest under rules: what it and the device see, what may be mapped, what the log says."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user_bridge import models
from vfio_user_bridge.cli import main
from vfio_user_bridge.device import Device, PciRegion, RegionFlags
from vfio_user_bridge.errors import UsageError
from vfio_user_bridge.messages import RegionInfo
from vfio_user_bridge.policy.device import LINES, PolicedDevice, policed
from vfio_user_bridge.policy.rules import WHOLE, Action, Rule
from vfio_user_bridge.protocol import Buffer
from vfio_user_bridge.sparse import mappable_areas

from . import client as c
from .device_contract import CONTRACT
from .engines import ENGINES, need, talk
from .fake_device import REGIONS, FakeDevice
from .running_server import server
from .wire import region, u32, u64

BAR0, BAR1, BAR2, CONFIG = PciRegion.BAR0, PciRegion.BAR1, PciRegion.BAR2, PciRegion.CONFIG
ALLOW, DENY, FORCE, LOG = Action.ALLOW, Action.DENY, Action.FORCE, Action.LOG
LIVENESS = 0x04  # of edu: reads as what was written, inverted
SIZE = 32


def rule(
    action: Action, start: int, end: int, region: PciRegion = CONFIG, number: int = 1, **more: Any
) -> Rule:
    return Rule(f"rule {number}", number, region, start, end, action, **more)


class Memory(FakeDevice):
    """*content* is its config space; *seen* has the bytes of each access, by offset."""

    def __init__(self) -> None:
        super().__init__()
        self.content = bytearray(os.urandom(SIZE))
        self.seen: list[range] = []

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        assert index == CONFIG
        self.seen.append(range(offset, offset + count))
        return bytes(self.content[offset : offset + count])

    def region_write(self, index: int, offset: int, data: Buffer) -> None:
        assert index == CONFIG
        self.seen.append(range(offset, offset + len(data)))
        self.content[offset : offset + len(data)] = data


# ---- What it reads, and what the device sees ------------------------------------------------


@pytest.fixture
def edu() -> Iterator[Device]:
    with closing(models.create("edu")) as device:
        yield PolicedDevice(device, [rule(DENY, 0x2000, 0x3000, BAR0)])


@pytest.mark.parametrize("clause", CONTRACT)
def test_a_policed_device_is_a_device(clause: Callable[[Device], None], edu: Device) -> None:
    clause(edu)


def test_a_device_without_rules_is_itself() -> None:
    with closing(FakeDevice()) as device:
        others = rule(DENY, 0, 4, device="nic*")
        assert policed(device, [others]) is device
        assert isinstance(policed(device, [others, rule(DENY, 0, 4, device="f*")]), PolicedDevice)


@st.composite
def rules(draw: st.DrawFn) -> list[Rule]:
    made = []
    for number in range(1, draw(st.integers(1, 5)) + 1):
        action = draw(st.sampled_from(Action))
        start, size = draw(st.integers(0, SIZE - 1)), draw(st.integers(1, 8))
        mask = draw(st.binary(min_size=size, max_size=size)) if action == FORCE else b""
        value = bytes(byte & draw(st.integers(0, 255)) for byte in mask)
        reads, writes = draw(st.sampled_from(((True, True), (True, False), (False, True))))
        made.append(
            rule(
                action,
                start,
                start + size,
                number=number,
                reads=reads,
                writes=writes,
                value=value,
                mask=mask,
            )
        )
    return made


class Access(NamedTuple):
    offset: int
    data: bytes
    write: bool


ACCESSES = st.integers(0, SIZE - 1).flatmap(
    lambda offset: st.builds(
        Access, st.just(offset), st.binary(min_size=1, max_size=SIZE - offset), st.booleans()
    )
)


def first(rules: list[Rule], offset: int, *, write: bool) -> Rule | None:
    """Whose this byte is."""
    for rule in rules:
        if rule.start <= offset < rule.end and (rule.writes if write else rule.reads):
            return rule
    return None


def meant(rule: Rule | None, offset: int, byte: int) -> int:
    """What becomes of a byte that isn't denied."""
    if rule is None or rule.action != FORCE:
        return byte
    at = offset - rule.start
    return byte & ~rule.mask[at] | rule.value[at]


def runs(offsets: list[int]) -> list[range]:
    """Those that follow each other, together."""
    found: list[range] = []
    for offset in offsets:
        start = found.pop().start if found and found[-1].stop == offset else offset
        found.append(range(start, offset + 1))
    return found


@given(rules(), st.lists(ACCESSES, min_size=1, max_size=8))
def test_bytes_go_by_the_first_rule(rules: list[Rule], accesses: list[Access]) -> None:
    """One by one: what is denied isn't touched, its neighbours are in one piece."""
    hits = {rule.number: 0 for rule in rules if rule.action != ALLOW}
    with closing(Memory()) as device:
        guests = PolicedDevice(device, rules)
        content = bytearray(device.content)
        for offset, data, write in accesses:
            owners = {at: first(rules, at, write=write) for at in range(offset, offset + len(data))}
            passing = [at for at, owner in owners.items() if not owner or owner.action != DENY]
            if write:
                guests.region_write(CONFIG, offset, data)
                for at in passing:
                    content[at] = meant(owners[at], at, data[at - offset])
            else:
                read = guests.region_read(CONFIG, offset, len(data))
                assert list(read) == [
                    meant(owner, at, content[at]) if at in passing else 0xFF
                    for at, owner in owners.items()
                ]
            assert device.content == content
            assert device.seen == runs(passing)
            device.seen.clear()
            for owner, _ in itertools.groupby(owners.values()):
                if owner and owner.action != ALLOW:
                    hits[owner.number] += 1
        assert {number: count for number, _, count in guests.hits} == hits


def test_what_the_device_gives_less_of() -> None:
    """Ends the answer, as without rules."""
    with closing(Memory()) as device:
        guests = PolicedDevice(device, [rule(DENY, 4, 8)])
        device.content = device.content[:10]
        expected = bytes(device.content[:4]) + b"\xff" * 4 + bytes(device.content[8:])
        assert guests.region_read(CONFIG, 0, 16) == expected
        device.content = device.content[:2]
        assert guests.region_read(CONFIG, 0, 16) == bytes(device.content)


def test_regions_without_rules() -> None:
    """Nothing comes between."""
    with closing(FakeDevice()) as device:
        guests = PolicedDevice(device, [rule(DENY, 0, WHOLE)])
        data = memoryview(b"data")
        guests.region_write(BAR0, 4, data)
        guests.region_read(BAR2, 8, 4)
        assert device.calls == [("region_write", 0, 4, b"data"), ("region_read", 2, 8, 4)]
        assert guests.region_info(BAR0) is REGIONS[BAR0]


def test_what_a_device_has_not() -> None:
    with closing(FakeDevice()) as device:
        for wrong, what in (
            (rule(DENY, 0, 4, BAR1), "rule 1, region: fake has no bar1"),
            (rule(DENY, 0, WHOLE, BAR1), "rule 1, region: fake has no bar1"),
            (rule(DENY, 255, 257), "rule 1, offset: config of fake ends at 0xff"),
        ):
            with pytest.raises(UsageError, match=f"^{what}$"):
                PolicedDevice(device, [wrong])
        PolicedDevice(device, [rule(DENY, 255, 256)])


# ---- What may be mapped ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "index", "expected"),
    [
        (0x1000, 0x1001, BAR0, [(0, 0x1000), (0x2000, 0x2000)]),
        (0xFFF, 0x1001, BAR0, [(0x2000, 0x2000)]),
        (0, WHOLE, BAR0, []),
        (0x3FFF, 0x4000, BAR0, [(0, 0x3000)]),
        (0, 4, BAR2, [(0x1000, 0x3FF000)]),
        (0, 4, CONFIG, []),
    ],
)
@pytest.mark.parametrize("action", [DENY, FORCE, LOG])
@pytest.mark.parametrize("reads", [True, False])
def test_pages_that_rules_are_about_are_trapped(
    start: int, end: int, index: int, expected: list[tuple[int, int]], action: Action, reads: bool
) -> None:
    ones = b"\xff" * min(end - start, 8)
    with closing(FakeDevice()) as device:
        about = rule(action, start, end, PciRegion(index), reads=reads, value=ones, mask=ones)
        info = PolicedDevice(device, [about]).region_info(index)
    before = device.region_info(index)
    assert mappable_areas(info) == expected
    assert (info.size, info.offset) == (before.size, before.offset)
    assert bool(info.flags & RegionFlags.MMAP) == bool(expected)
    assert [cap.id for cap in info.capabilities] == (
        [cap.id for cap in before.capabilities] + [1] if expected else []
    )


def test_pages_that_are_allowed_stay_mapped() -> None:
    """An exception, in a region that is otherwise closed."""
    rules = [rule(ALLOW, 0x800, 0x2800, BAR0), rule(DENY, 0, WHOLE, BAR0, number=2)]
    with closing(FakeDevice()) as device:
        guests = PolicedDevice(device, rules)
        assert mappable_areas(guests.region_info(BAR0)) == [(0x1000, 0x1000)]
        assert guests.region_read(BAR0, 0x7FE, 4) == b"\xff\xff\xa5\xa5"
        assert guests.hits == [(2, "", 1)]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_client_hears_of_areas_and_has_a_file_only_for_them(engine: str) -> None:
    need(engine)
    rules = [rule(LOG, 0x1000, 0x1001, BAR0), rule(DENY, 0, WHOLE, BAR2, number=2)]
    with closing(FakeDevice()) as device, talk(engine, PolicedDevice(device, rules)) as end:
        payload = u32(4096, 0, BAR0, 0) + bytes(16)
        reply = end.client.call(c.GET_REGION_INFO, payload)
        assert mappable_areas(RegionInfo.unpack(reply.payload)) == [(0, 0x1000), (0x2000, 0x2000)]
        (fd,) = reply.fds
        assert os.path.sameopenfile(fd, device.bar)
        os.close(fd)
        reply = end.client.call(c.GET_REGION_INFO, u32(4096, 0, BAR2, 0) + bytes(16))
        assert not reply.fds
        assert not RegionInfo.unpack(reply.payload).flags & RegionFlags.MMAP


def test_who_could_go_around_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with closing(FakeDevice()) as device:
        for rules, said in (
            ([rule(DENY, 0, 4)], True),
            ([rule(LOG, 0, 4)], False),
            ([rule(DENY, 0, WHOLE, BAR0), rule(DENY, 0, WHOLE, BAR2, number=2)], False),
        ):
            caplog.clear()
            PolicedDevice(device, rules)
            assert ["fake: the policy holds" in text for text in caplog.messages] == [True] * said


# ---- What the log says ----------------------------------------------------------------------


def test_denials_are_told_once_for_each_client(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with closing(Memory()) as device:
        guests = PolicedDevice(device, [rule(DENY, 4, 6, note="no master")])
        caplog.clear()
        for _client in range(2):
            for _ in range(3):
                guests.region_write(CONFIG, 0, b"\x01\x02\x03\x04\x05\x06\x07\x08")
                guests.region_read(CONFIG, 5, 1)
            guests.quiesce(reset=True)
        guests.quiesce(reset=True)  # a client that met no rule
        assert guests.hits == [(1, "no master", 12)]
    told = "fake: policy rule 1 (no master): denied write of 2 bytes at 0x4 of config: 0x0605"
    summed_up = "fake: policy, for this client: rule 1 denied 6"
    assert caplog.messages == [told, summed_up] * 2


def test_logged_accesses_are_told_but_so_many_a_second(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    with closing(Memory()) as device:
        guests = PolicedDevice(device, [rule(LOG, 4, 6)])
        device.content[4:6] = b"\x34\x02"
        now = itertools.count(100.0, 0.01)
        monkeypatch.setattr("time.monotonic", lambda: next(now))
        for _ in range(101):
            guests.region_read(CONFIG, 0, 8)
        line = "fake: policy rule 1: logged read of 2 bytes at 0x4 of config: 0x0234"
        assert caplog.messages == [line] * LINES + [f"{line}; {100 - LINES} more went untold"]
        assert guests.hits == [(1, "", 101)]


def test_long_data_and_forced_bits_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    forced = rule(FORCE, 0, 1, value=b"\x01", mask=b"\x01", number=2)
    with closing(Memory()) as device:
        guests = PolicedDevice(device, [rule(LOG, 1, WHOLE), forced])
        caplog.clear()
        guests.region_write(CONFIG, 0, bytes(10))
    assert caplog.messages == ["fake: policy rule 1: logged write of 9 bytes at 0x1 of config"]


# ---- The command ----------------------------------------------------------------------------


POLICY = """\
[[rule]]
device = "edu"
region = "bar0"
offset = "0x4-0x7"
access = "write"
action = "deny"
note = "leave it"

[[rule]]
region = "config"
offset = "0x4-0x5"
action = "force"
value = 0x0
mask = 0x400
"""


def test_serve(tmp_path: Path) -> None:
    path, policy = tmp_path / "socket", tmp_path / "policy.toml"
    policy.write_text(POLICY)
    with server(path, "--socket-path", str(path), "--policy", str(policy)) as running:
        with running.client() as client:
            client.ask(c.REGION_WRITE, region(LIVENESS, BAR0, u32(0)))
            client.ask(c.REGION_WRITE, region(LIVENESS, BAR0, u64(0)))
            assert client.ask(c.REGION_READ, region(LIVENESS, BAR0, 4))[16:] == u32(0)
            client.ask(c.REGION_WRITE, region(4, CONFIG, b"\x07\x05"))
            assert client.ask(c.REGION_READ, region(4, CONFIG, 2))[16:] == b"\x07\x01"
        running.stop()
        log = running.log()
        assert log.count("edu: policy rule 1 (leave it): denied write of 4 bytes at 0x4") == 1
        assert "edu: policy, for this client: rule 1 denied 2, rule 2 forced 2\n" in log


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("0x4-0x7", "0x100000"), "rule 1, offset: bar0 of edu ends at 0xfffff"),
        (("bar0", "rom"), "rule 1, region: edu has no rom"),
        (('"edu"', '"nic"'), "rule 1, device: no 'nic' is served; there are: edu"),
        (
            ("deny", "drop"),
            "rule 1, action: there is no 'drop'; there are: deny, allow, force, log",
        ),
    ],
)
def test_serve_without_sense(
    change: tuple[str, str], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, policy = tmp_path / "socket", tmp_path / "policy.toml"
    policy.write_text(POLICY.replace(*change))
    assert main(["serve", "model:edu", "--socket-path", str(path), "--policy", str(policy)]) == 2
    assert capsys.readouterr().err == f"vfio-user-bridge: {policy}: {what}\n"
    assert not path.exists()
